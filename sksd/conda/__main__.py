import sys

from sksd.conda.main import main

if __name__ == "__main__":
    main(sys.argv[1:])
