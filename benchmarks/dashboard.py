"""Build the dashboard of the asv results: asv's own site and one page in front of it, offline.

    python benchmarks/dashboard.py                       build it, into benchmarks/.asv/html
    python benchmarks/dashboard.py --open                … serve it on 127.0.0.1, open a browser
    python benchmarks/dashboard.py --screenshots docs    … take pictures of it, with Chromium

Needs the extra `benchmark`. asv's pages load their scripts from three other hosts; here they come
from `vendor/`. `overview.py` makes the page in front (`index.html`), asv's is `asv/index.html`.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import html.parser
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import overview

HERE = Path(__file__).resolve().parent
VENDOR = HERE / "vendor"
#: A browser then refuses what would come from elsewhere, whatever asv's scripts do.
POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline'; "
          "style-src 'self' 'unsafe-inline'; img-src 'self' data:")


class DashboardError(Exception):
    """What keeps the site from being built; its text is for people."""


# ---- asv's site without network ------------------------------------------------------------------


@dataclass(frozen=True)
class Vendored:
    """A copy of a file that asv's page loads from elsewhere."""

    file: str
    package: str
    path: str
    license: str | None
    #: The hash that asv's page demands of the file.
    stands_for: str
    #: The hash that the copy has.
    integrity: str

    @property
    def license_file(self) -> str:
        """Where its licence is, in `vendor/`."""
        return f"licenses/{self.package.partition('@')[0]}.txt"


def manifest() -> list[Vendored]:
    """Return the lines of `vendor/manifest.json`."""
    lines = json.loads((VENDOR / "manifest.json").read_text(encoding="utf-8"))
    return [Vendored(**{"integrity": line["stands_for"], **line}) for line in lines]


def matches(content: bytes, integrity: str) -> bool:
    """Whether a file has the hash of an `integrity` attribute."""
    algorithm, _, digest = integrity.partition("-")
    return hashlib.new(algorithm, content).digest() == base64.b64decode(digest)


def _attributes(tag: str) -> dict[str, str | None]:
    parser = html.parser.HTMLParser()
    found: dict[str, str | None] = {}
    parser.handle_starttag = lambda _, attributes: found.update(attributes)
    parser.feed(tag)
    return found


def make_offline(site: Path) -> None:
    """Let the pages of `asv publish` load copies of what they load from other hosts.

    A link that no copy is known for, and a copy that is not what it was, are errors.
    """
    copies = {file.stands_for: file for file in manifest()}
    (site / "vendor" / "licenses").mkdir(parents=True)

    def local(match: re.Match[str]) -> str:
        attributes = _attributes(match[0])
        name = "src" if match[1] == "script" else "href"
        link = attributes.get(name)
        if link is None or not is_outside(link):
            return match[0]
        copy = copies.get(attributes.get("integrity") or "")
        if copy is None:
            raise DashboardError(
                f"asv's page loads {link}, and benchmarks/vendor has no copy of it: this asv is "
                "not one that the copies were made for; see docs/dashboard.md, 'The copies'")
        content = (VENDOR / copy.file).read_bytes()
        if not matches(content, copy.integrity):
            raise DashboardError(f"benchmarks/vendor/{copy.file} is not the file that its manifest "
                                 "says: run python benchmarks/vendor/refresh.py")
        (site / "vendor" / copy.file).write_bytes(content)
        shutil.copy(VENDOR / copy.license_file, site / "vendor" / copy.license_file)
        if match[1] == "script":
            return f'<script src="vendor/{copy.file}" onerror="js_load_failure()">'
        return f'<link rel="stylesheet" href="vendor/{copy.file}">'

    for page in site.glob("*.html"):
        text = re.sub(r"<(script|link)\b[^>]*>", local, page.read_text(encoding="utf-8"))
        text, heads = re.subn(
            "<head>", f'<head>\n    <meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            text)
        if heads != 1:
            raise DashboardError(f"asv's {page.name} has {heads} <head> and not one: this asv is "
                                 "not one that the dashboard knows")
        page.write_text(text, encoding="utf-8")


def is_outside(link: str) -> bool:
    """Whether a link leaves the site."""
    parts = urllib.parse.urlsplit(link.strip())
    return bool(parts.netloc) or parts.scheme not in ("", "data")


class _Loads(html.parser.HTMLParser):
    """What a page loads, as opposed to what it has links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        for name, value in attrs:
            if value is None or (tag == "a" and name in ("href", "xlink:href")):
                continue
            if name in ("src", "href", "xlink:href", "data", "poster", "background", "action",
                        "formaction"):
                self.found.append(value)
            elif name == "srcset":
                self.found += [part.split()[0] for part in value.split(",") if part.strip()]
            elif name == "style":
                self.found += _style_loads(value)
            elif (tag, name) == ("meta", "content") and "url=" in value.lower():
                self.found.append(re.split("url=", value, flags=re.I)[1].strip("'\" "))

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.found += _style_loads(data)


def _style_loads(style: str) -> list[str]:
    links = re.findall(r"""url\(\s*['"]?([^'")]*)|@import\s+['"]([^'"]*)""", style)
    return [url or imported for url, imported in links]


def outside_loads(site: Path) -> Iterator[tuple[Path, str]]:
    """Yield what pages, styles and pictures would load from other hosts.

    What a script asks for is not seen here: asv's pages have a policy (`POLICY`) that refuses it.
    """
    for file in sorted(site.rglob("*")):
        if file.suffix in (".html", ".svg"):
            parser = _Loads()
            parser.feed(file.read_text(encoding="utf-8"))
            loads = parser.found
        elif file.suffix == ".css":
            loads = _style_loads(file.read_text(encoding="utf-8"))
        else:
            continue
        for link in loads:
            if is_outside(link):
                yield file.relative_to(site), link


# ---- building ------------------------------------------------------------------------------------


def publish(config: Path, target: Path) -> None:
    """Let asv make its site of the results."""
    done = subprocess.run(
        [sys.executable, "-m", "asv", "publish", "--config", str(config), "--no-pull",
         "--html-dir", str(target)],
        capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        if "No module named asv" in said:
            raise DashboardError("asv is not installed: pip install '.[benchmark]'")
        raise DashboardError(f"asv publish has failed:\n{said}")


def build(config: Path, target: Path) -> None:
    """Build the site in a folder, which it replaces once the new one is complete."""
    config, target = config.resolve(), target.resolve()
    if target.exists():
        # This one's, or one that asv has made by itself.
        is_site = (target / "asv" / "asv.js").is_file() or (target / "asv.js").is_file()
        if not target.is_dir() or (not is_site and any(target.iterdir())):
            raise DashboardError(f"{target} is no dashboard: take an empty or a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as scratch:
        site = Path(scratch, "site")
        publish(config, site / "asv")
        make_offline(site / "asv")
        overview.write(config, site)
        for file, link in outside_loads(site):
            raise DashboardError(f"{file} would still load {link}")
        if target.exists():
            shutil.rmtree(target)
        site.rename(target)


def html_folder(config: Path) -> Path:
    """Where `asv.conf.json` wants the site."""
    from asv.config import Config
    from asv.util import UserError

    try:
        return config.parent / Config.load(str(config)).html_dir
    except UserError as error:
        raise DashboardError(str(error)) from None


# ---- looking at it -------------------------------------------------------------------------------


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def server(site: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of the site for this machine alone; port 0 is any that is free."""
    try:
        return http.server.ThreadingHTTPServer(
            ("127.0.0.1", port), functools.partial(_Quiet, directory=str(site)))
    except (OSError, OverflowError) as error:
        raise DashboardError(f"cannot serve on port {port}: {error}; take another one, --port 0 "
                             "takes any that is free") from None


#: Nothing but the page: no first-run pages, updates or reports, no profile of the user's.
CHROMIUM_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync")
#: In a picture, shades of the edges of letters and lines included.
COLOURS = 160
#: Name of the picture: (page, width, height, dark).
SCREENSHOTS = {
    "overview": ("", 1100, 1500, False),
    "phone": ("", 500, 1000, True),
    "series": ("{series}", 1300, 800, False),
    "regressions": ("asv/index.html#/regressions", 1300, 500, False),
}


def chromium() -> str | None:
    """Return where Chromium is, if it is."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
        "google-chrome")


def take_screenshots(site: Path, folder: Path) -> None:
    """Write dashboard-*.png: the overview, on a phone too, one series and the regressions."""
    browser = chromium()
    if browser is None:
        raise DashboardError("pictures are taken with Chromium, and there is none: "
                             "apt-get install chromium")
    if not folder.is_dir():
        raise DashboardError(f"there is no folder {folder}")
    data = json.loads((site / "overview.json").read_text(encoding="utf-8"))
    series = next((found["graph"] for _, found in overview.cells_of(data)
                   if found["unit"] == "seconds" and found["sparkline"]), None)
    serving = server(site, 0)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        for name, (page, width, height, dark) in SCREENSHOTS.items():
            file = folder.resolve() / f"dashboard-{name}.png"
            if "{series}" in page and series is None:
                print(f"{file.name}: there is no series to show")
                continue
            url = f"http://127.0.0.1:{serving.server_port}/{page.format(series=series)}"
            with tempfile.TemporaryDirectory() as profile:
                subprocess.run(
                    [browser, *CHROMIUM_FLAGS, f"--user-data-dir={profile}", "--hide-scrollbars",
                     f"--window-size={width},{height}", "--virtual-time-budget=10000",
                     *(["--force-dark-mode"] if dark else []),
                     f"--screenshot={file}", url],
                    capture_output=True, check=True, timeout=120)
            _fewer_colours(file)
            print(file)
    finally:
        serving.shutdown()
        serving.server_close()


def _fewer_colours(file: Path) -> None:
    """Make a picture of a page small: pages have few colours."""
    from PIL import Image  # Matplotlib's

    with Image.open(file) as picture:
        small = picture.convert("RGB").quantize(COLOURS)
    small.save(file, optimize=True)


def main(arguments: list[str] | None = None) -> int:
    """Build the site; serve it or take its pictures if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], epilog="See docs/dashboard.md.")
    parser.add_argument("--config", type=Path, default=HERE / "asv.conf.json",
                        help="default: benchmarks/asv.conf.json")
    parser.add_argument("--out", type=Path, metavar="FOLDER",
                        help="where the site goes; default: the config's html_dir")
    parser.add_argument("--serve", action="store_true", help="serve it on 127.0.0.1 until Ctrl-C")
    parser.add_argument("--port", type=int, default=8000,
                        help="of --serve; 0: any that is free; default: %(default)s")
    parser.add_argument("--open", action="store_true", help="serve it and open a browser")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER",
                        help="write pictures of it, dashboard-*.png, with Chromium")
    options = parser.parse_args(arguments)
    try:
        site = options.out or html_folder(options.config)
        build(options.config, site)
        print(f"built {os.path.relpath(site)}", flush=True)
        if options.screenshots:
            take_screenshots(site, options.screenshots)
        if options.serve or options.open:
            serve(site, options.port, options.open)
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed: pip install '.[benchmark]'", file=sys.stderr)
        return 1
    except DashboardError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def serve(site: Path, port: int, show: bool) -> None:
    """Serve the site until Ctrl-C."""
    with server(site, port) as serving:
        address = f"http://127.0.0.1:{serving.server_port}/"
        print(f"{address}   (Ctrl-C ends it)", flush=True)
        if show:
            webbrowser.open(address)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    raise SystemExit(main())
