"""One worker on a sweep folder, as `metasae sweep --workers` starts it: python -m metasae.sweep FOLDER DEVICE."""

import sys

from metasae.errors import UserError
from metasae.progress.stop import StopRequest
from metasae.sweep.folder import SweepFolder
from metasae.sweep.worker import Worker

try:
    with StopRequest().listening() as stop:
        Worker(SweepFolder(sys.argv[1]), sys.argv[2]).work(stop)
except UserError as error:
    print(f"metasae: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
