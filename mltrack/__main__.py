"""`python -m mltrack`, the same as `mltrack`."""

from mltrack.cli import main

if __name__ == "__main__":
    main()
