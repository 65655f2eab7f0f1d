"""``continual dashboard``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from continual.errors import UserError

EXAMPLES = """examples:
  continual dashboard runs                      writes dashboard.html
  continual dashboard sweep --export sweep.html
  continual dashboard runs --live               follows running experiments in the browser"""
EXPORT = "dashboard.html"


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EXAMPLES
    parser.add_argument("runs", nargs="*", metavar="RUNS", help="folders with runs at or below them (default: runs)")
    into = parser.add_mutually_exclusive_group()
    into.add_argument("--export", metavar="FILE", help=f"where to write the page (default: {EXPORT})")
    into.add_argument("--live", action="store_true", help="serve the page on this machine and follow the runs")
    parser.add_argument("--port", type=int, default=None, help="of the live page (default: a free one)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def act(options: Namespace) -> int:
    """Write the page, or serve it until Ctrl-C."""
    paths = [Path(path) for path in options.runs or ["runs"]]
    if options.live:
        return _serve(paths, options.port or 0, options.open)
    if options.port is not None:
        raise UserError(f"--port {options.port} is of the live page; add --live")
    return _write(paths, Path(options.export or EXPORT), options.open)


def _write(paths: list[Path], target: Path, show: bool) -> int:
    if target.is_dir():
        raise UserError(f"--export {target} is a folder; write the file's name")
    from continual.dashboard.collect import collect
    from continual.dashboard.page import render
    from continual.files import write_atomic

    page = render(collect(paths)).encode()
    try:
        write_atomic(target, page)
    except OSError as error:
        raise UserError(f"--export {target} cannot be written: {error.strerror}") from None
    print(f"written to {target} ({len(page) / 1e6:.1f} MB, needs no network)")
    _show(target.resolve().as_uri(), show)
    return 0


def _serve(paths: list[Path], port: int, show: bool) -> int:
    from continual.dashboard.collect import Follower
    from continual.dashboard.live import LiveServer

    with LiveServer(Follower(paths), port) as server:
        print(f"{server.url} follows {', '.join(map(str, paths))}; Ctrl-C ends it", flush=True)
        _show(server.url, show)
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            print()
    return 0


def _show(url: str, show: bool) -> None:
    if show:
        import webbrowser

        webbrowser.open(url)
