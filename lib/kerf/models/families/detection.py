"""What the files of a model say about its family: the class that its configuration names, and the modules of sentence-transformers."""

from pathlib import Path

from kerf.models.model_files import module_folders, read_or_empty

STATIC = "StaticEmbedding"  # the module, and a model without a transformer: a table with a row for each token
MODEL2VEC = {
    "normalize",
    "embedding_dtype",
}  # keys of the configuration of model2vec, which may name no model_type


def architecture(folder: Path) -> str:
    """The class that the configuration of the transformer names; empty where it names none."""
    return (read_or_empty(_config(folder), list, "architectures") or [""])[0]


def model_type(folder: Path) -> str:
    """The class of sentence-transformers that wrote the directory; empty where it names none."""
    return read_or_empty(folder / "config_sentence_transformers.json", str, "model_type")


def modules(folder: Path) -> list[str]:
    """Names of the classes in modules.json; empty for a model of transformers."""
    listed = read_or_empty(folder / "modules.json", list)
    return [str(module.get("type")).rpartition(".")[2] for module in listed]


def is_static(folder: Path) -> bool:
    """Whether a model, or the folder of a first module, is a table of static embeddings."""
    if names := modules(folder):
        return names[0] == STATIC
    config, tokenizer = _config(folder), _config(folder).with_name("tokenizer.json")
    keys = read_or_empty(config, dict)
    plain = not config.is_file() or bool(MODEL2VEC & {*keys}) and "architectures" not in keys
    return tokenizer.is_file() and (plain or keys.get("model_type") == "model2vec")


def _config(folder: Path) -> Path:
    return module_folders(folder)[0] / "config.json"
