"""The command of `examples/benchmark/` under its earlier path."""

from benchmark.command import main


if __name__ == "__main__":
    main()
