"""``python -m pdlib``, and the ``pdlib`` command. However it is stopped, at whatever moment, it says one line."""

import os
import signal
import sys
import warnings


def main() -> None:
    """Run the command of the command line, and end the process with its exit code."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        if stopped:
            os._exit(130)  # asked twice
        stopped = True
        kept = getattr(sys.modules.get("pdlib.runs.cli"), "kept", str)()
        os.write(2, f"pdlib: stopped{kept}\n".encode())
        for stream in (1, 2):  # what libraries say while they are torn down helps nobody
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # λ and ± on a terminal that has none
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        from pdlib.runs.cli import main as command

        code = command()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os._exit(141)
    finally:
        if stopped:
            os._exit(130)
    sys.exit(code)


if __name__ == "__main__":
    main()
