"""`--checkpoint hf:ORG/NAME[/FILE][@REVISION]`: weights from the Hugging Face hub, pinned to a commit."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bench.core.errors import UserError
from bench.core.extras import import_extra
from bench.core.registry import one_line

PREFIX = "hf:"
FORM = "hf:ORG/NAME, hf:ORG/NAME/FILE or hf:ORG/NAME/FILE@REVISION"
ADDRESS = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@(.+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
USUAL = ("model.safetensors", "pytorch_model.bin")  # the weights are the first of these that a repository has
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at one commit, and its copy in the hub's cache on this machine."""

    repository: str  # ORG/NAME
    file: str
    commit: str
    path: Path

    @property
    def address(self) -> str:
        """The permanent address of this version of the file."""
        return f"{PREFIX}{self.repository}/{self.file}@{self.commit}"


def fetch(address: str) -> HubFile:
    """Download a file, or find it in the cache; UserError if there is none, or without a connection.

    A branch or a tag is resolved to its commit each time, so that a changed file is not confused with the old one.
    A full commit with a file needs no connection if the file is in the cache.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"checkpoint '{address}' is not an address of the hub; write {FORM}")
    repository, file, revision = match[1], match[2], match[3] or "main"
    hub = import_extra("huggingface_hub", "hub", PREFIX)
    try:
        if file is None or not COMMIT.fullmatch(revision):
            info = hub.HfApi().model_info(repository, revision=revision)
            names = [sibling.rfilename for sibling in info.siblings or []]
            file, revision = _chosen(names, file, address), str(info.sha)
        path = Path(hub.hf_hub_download(repository, file, revision=revision))
    except UserError:
        raise
    except Exception as error:  # the hub's own exceptions, and those of its HTTP library
        reason = one_line(error)
        raise UserError(
            f"checkpoint '{address}' cannot be fetched ({reason}); check its name and the connection. In the cache, a "
            "file with a full commit (@40 hexadecimal digits) needs no connection"
        ) from error
    return HubFile(repository, file, revision, path)


def repository_name(address: str) -> str:
    """NAME of hf:ORG/NAME/FILE@COMMIT."""
    return address.removeprefix(PREFIX).split("/")[1].partition("@")[0]


def _chosen(names: list[str], file: str | None, address: str) -> str:
    """The file of weights among those of a repository."""
    weights = [name for name in names if PurePosixPath(name).suffix in SUFFIXES]
    if file is not None:
        if file in names:
            return file
        raise UserError(f"checkpoint '{address}': there is no {file}; its weights are {', '.join(weights) or 'none'}")
    usual = [name for name in USUAL if name in weights] or weights
    if len(usual) != 1 and usual[:1] != [USUAL[0]]:
        have = f"has {', '.join(weights)}" if weights else f"has no file that ends in {', '.join(SUFFIXES)}"
        raise UserError(f"checkpoint '{address}': the repository {have}; name a file, as in {FORM}")
    return usual[0]
