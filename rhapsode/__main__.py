"""`python -m rhapsode` is `rhapsode`."""

from rhapsode.cli.main import main

if __name__ == "__main__":
    main()
