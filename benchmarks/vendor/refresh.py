"""Fetch the files of manifest.json again, from the packages that it names.

    python benchmarks/vendor/refresh.py            write them, with their licences
    python benchmarks/vendor/refresh.py --check    or only say what differs

Needs npm. A file must have the hash that the manifest says: `stands_for`, which is what asv's page
demands of the file that it loads, or `integrity` where no package has that very file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from dashboard import Vendored, manifest, matches  # noqa: E402


def members(package: str, wanted: set[str]) -> dict[str, bytes]:
    """Return files of a package, by their paths in it."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["npm", "pack", "--json", "--pack-destination", folder, package],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"npm pack {package} failed:\n{done.stderr.strip()}")
        with tarfile.open(Path(folder, json.loads(done.stdout)[0]["filename"])) as archive:
            # The first folder is called package, mostly.
            found = {member.name.partition("/")[2]: member for member in archive
                     if member.isfile()}
            missing = wanted - found.keys()
            if missing:
                raise SystemExit(f"{package} has no {', '.join(sorted(missing))}")
            return {path: archive.extractfile(found[path]).read() for path in wanted}


def fetch(files: list[Vendored]) -> dict[Path, bytes]:
    """Return what is to be in this folder."""
    contents = {}
    for package in sorted({file.package for file in files}):
        of_it = [file for file in files if file.package == package]
        found = members(package, {path for file in of_it for path in (file.path, file.license)
                                  if path})
        for file in of_it:
            if not matches(found[file.path], file.integrity):
                raise SystemExit(f"{package}, {file.path}: its hash is not {file.integrity}")
            contents[HERE / file.file] = found[file.path]
            if file.license:
                contents[HERE / file.license_file] = found[file.license]
    return contents


def main() -> None:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    changed = [(path, content) for path, content in fetch(manifest()).items()
               if not path.is_file() or path.read_bytes() != content]
    for path, content in changed:
        print(path.relative_to(HERE), "differs" if check else "written")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    if not changed:
        print("all files are the packages'")
    if check and changed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
