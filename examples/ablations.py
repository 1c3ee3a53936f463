"""The command of `examples/ablations/` under its earlier path."""

from ablations.command import main


if __name__ == "__main__":
    main()
