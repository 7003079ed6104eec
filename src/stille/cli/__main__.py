"""`python -m stille.cli`."""

from stille.cli import main

if __name__ == "__main__":
    main()
