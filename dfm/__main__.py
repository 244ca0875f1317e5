"""`python -m dfm` is the command `dfm`."""

from dfm.cli import main

if __name__ == "__main__":
    main()
