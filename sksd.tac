# twistd -y sksd.tac (in the background), twistd -ny sksd.tac (in the foreground).
from sksd.server import tap

application = tap.application()
