"""Downloads the packages that ship chat templates, without installing them or what they depend on."""

import html
import pathlib
import re
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
import zipfile

# TRL's trainers and llama.cpp's folder of templates.
TRL = "1.16.0"
LLAMA_CPP_PYTHON = "0.3.36"


def download(directory):
    """The folders with the packages' files."""
    directory = pathlib.Path(directory)
    return [wheel("trl", TRL, directory), sdist("llama-cpp-python", LLAMA_CPP_PYTHON, directory)]


def wheel(name, version, directory):
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "-d", directory, f"{name}=={version}"], check=True)
    (path,) = directory.glob(f"{name}-*.whl")
    zipfile.ZipFile(path).extractall(directory / name)
    return directory / name


def sdist(name, version, directory):
    """From the index itself: pip would build the package to learn its metadata."""
    index = f"https://pypi.org/simple/{name}/"
    page = urllib.request.urlopen(index, timeout=60).read().decode()
    file_name = f"{name.replace('-', '_')}-{version}.tar.gz"
    (link,) = re.findall(rf'href="([^"]*/{re.escape(file_name)}[^"]*)"', page)
    path = directory / file_name
    link = urllib.parse.urljoin(index, html.unescape(link))
    path.write_bytes(urllib.request.urlopen(link, timeout=600).read())
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if ".jinja" in member.name]
        archive.extractall(directory / name, members=members, filter="data")
    return directory / name
