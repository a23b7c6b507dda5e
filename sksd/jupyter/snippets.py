"""The Python that goes to an engine around a person's own code.

It leaves the person's namespace as it was, and needs nothing there but IPython.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: What subprocesses and libraries in C write shall be heard, too. ipykernel sees to that by itself; a Spyder kernel
#: leaves it to this extension, which it depends on and which Spyder asks for.
_CAPTURE: Final = """
import sys
from IPython import get_ipython
if not getattr(sys.stdout, "_should_watch", False):
    try:
        get_ipython().extension_manager.load_extension("wurlitzer")
    except ImportError:
        pass
"""

#: The person's cell is sent as it is; this goes before it. `sys.exit` and `exit(3)` shall end the program without
#: IPython's advice on how to exit.
_PREPARE: Final = """
import sys, warnings
from IPython import get_ipython
from IPython.core.autocall import IPyAutocall
shell = get_ipython()
class Leave(IPyAutocall):
    rewrite = False
    def __call__(self, code=None):
        raise SystemExit(code)
kept = {name: shell.user_ns.get(name) for name in ("exit", "quit")}
shell.user_ns.update(exit=Leave(), quit=Leave())
warnings.filterwarnings("ignore", message="To exit: use")
shell._sksd = {"kept": kept, "filter": warnings.filters[0], "argv": sys.argv}
sys.argv = ARGV
sys.last_value = None
"""

#: Goes behind it; leaves `[exit code, words for stderr]`.
_FINISH: Final = """
import sys, warnings
from IPython import get_ipython
shell = get_ipython()
state = shell._sksd
for name, value in state["kept"].items():
    if value is None:
        shell.user_ns.pop(name, None)
    else:
        shell.user_ns[name] = value
if state["filter"] in warnings.filters:
    warnings.filters.remove(state["filter"])
sys.argv = state["argv"]
last = getattr(sys, "last_value", None)
code = last.code if isinstance(last, SystemExit) else 0
shell._sksd = [0, None] if code is None else [int(code), None] if isinstance(code, int) else [1, str(code)]
"""

#: A file is run as `python FILE` runs it: its own traceback, and nothing shown but what it prints.
_SCRIPT: Final = """
import linecache, os, sys, traceback
from IPython import get_ipython
shell = get_ipython()
space = shell.user_ns
def leave(code=None):
    raise SystemExit(code)
new = {"__file__": NAME, "exit": leave, "quit": leave}
kept = {name: space[name] for name in new if name in space}
argv, sys.argv = sys.argv, ARGV
space.update(new)
linecache.cache[NAME] = (len(TEXT), None, TEXT.splitlines(True), NAME)
me = os.getpid()
result = [0, None]
def words(code):
    try:
        return str(code)
    except Exception:
        return f"<{type(code).__name__}>"
def show(error):
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == "<sksd>":
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)
try:
    exec(compile(TEXT, NAME, "exec", dont_inherit=True), space)
except SystemExit as error:
    code = error.code
    result = [0, None] if code is None else [int(code), None] if isinstance(code, int) else [1, words(code)]
except KeyboardInterrupt as error:
    show(error)
    result = [130, None]
except BaseException as error:
    show(error)
    result = [1, None]
finally:
    if os.getpid() != me:
        # A child that the program has forked ends with it: it must not go on as a second kernel.
        if result[1] is not None:
            print(result[1], file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(result[0] & 0xFF)
    sys.argv = argv
    for name in new:
        space.pop(name, None)
    space.update(kept)
    shell._sksd = result
"""

#: An expression for `user_expressions`: what _FINISH and _SCRIPT left.
RESULT: Final = "__import__('IPython').get_ipython()._sksd"


def _exec(snippet: str, **names: str | list[str]) -> str:
    return f"exec(compile({snippet!r}, '<sksd>', 'exec'), {names!r})"


def capture() -> str:
    """To be executed silently, once, on an engine that is the program's alone: it stays so."""
    return _exec(_CAPTURE)


def prepare(args: Sequence[str]) -> str:
    """To be executed silently before a cell. `args`: what `sys.argv` shows behind its first element."""
    return _exec(_PREPARE, ARGV=["-c", *args])


def finish() -> str:
    """To be executed silently after a cell; `RESULT` is there then."""
    return _exec(_FINISH)


def script(text: str, name: str, args: Sequence[str]) -> str:
    """To be executed in place of the file `name` with the content `text`; `RESULT` is there then."""
    return _exec(_SCRIPT, TEXT=text, NAME=name, ARGV=[name, *args])
