"""One worker on a sweep folder, as `metasae sweep --workers` starts it: python -m metasae.sweep FOLDER DEVICE."""

import sys

from metasae.errors import UserError
from metasae.sweep.folder import SweepFolder


def main(folder: str, device: str) -> int:
    from metasae.progress.stop import StopRequest
    from metasae.sweep.worker import Worker

    try:
        with StopRequest().listening() as stop:
            Worker(SweepFolder(folder), device).work(stop)
    except UserError as error:
        print(f"metasae: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
