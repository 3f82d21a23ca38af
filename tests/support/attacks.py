"""Hostile changes to a model directory, by what must come of them: ignored and named, opened as if not there, or refused.

Code that runs leaves a file behind, the canary of the environment variable CANARY.
"""

import json
import os
import pickle
import shutil
import socket
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from support.small import write_causal, write_model, write_reranker

CODE = "import os, pathlib\npathlib.Path(os.environ['CANARY']).touch()\nclass Evil: pass\ndef generate(*_, **__): pass\n"
CLASSES = (
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoTokenizer",
)
EVIL = dict.fromkeys(CLASSES, "evil.Evil")
BIG = 10**9


class Payload:
    """Unpickled, it leaves the canary."""

    def __reduce__(self):
        return (Path.touch, (Path(os.environ["CANARY"]),))


def put(file, **changes):
    """An attack that changes keys of a JSON file, or writes it."""

    def attack(folder):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **changes})
        )

    return attack


def raw(file, content):
    """An attack that overwrites a file."""

    def attack(folder):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return attack


def sized(file, size):
    """A sparse file of many bytes."""

    def attack(folder):
        (folder / file).touch()
        os.truncate(folder / file, size)

    return attack


def linked(file, target):
    """A link in the place of a file; the target may begin with OUT, a folder beside the model."""

    def attack(folder):
        out = folder.parent / "outside"
        out.mkdir(exist_ok=True)
        if (folder / file).is_file():
            shutil.copyfile(folder / file, out / file)
        else:
            (out / file).write_text("{}")
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(target.replace("OUT", str(out)))

    return attack


def special(file, make):
    """Something that is no regular file."""

    def attack(folder):
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return attack


def pickled(name, protocol=2, keep=False):
    """A pickle that leaves the canary, in the place of the weights (keep: beside them)."""

    def attack(folder):
        if not keep:
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Payload(), protocol))

    return attack


def zipped(name):
    """The same as torch writes it."""

    def attack(folder):
        (folder / "model.safetensors").unlink()
        torch.save(Payload(), folder / name)

    return attack


def both(*attacks):
    """One after another."""
    return lambda folder: [attack(folder) for attack in attacks]


def sharded(target, write=True):
    """Weights behind an index that names `target`."""

    def attack(folder):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        place = target.replace("OUT", str(folder.parent))
        if write:
            (folder / place).write_bytes(pickle.dumps(Payload(), 2))
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, place)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return attack


def decoy(where):
    """Pickled weights beside safetensors that no library looks for."""

    def attack(folder):
        pickled("pytorch_model.bin")(folder)
        (folder / where).parent.mkdir(exist_ok=True)
        save_file({"decoy": torch.zeros(1)}, folder / where)

    return attack


def bind(path):
    """A socket; its path is short, since that of a test may be too long for one."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


IGNORED = {  # the model opens, and what is not run is named
    "auto_map of the model": put("config.json", auto_map=EVIL),
    "auto_map of another repository": put(
        "config.json", auto_map=dict.fromkeys(CLASSES, "org/repo--evil.Evil")
    ),
    "auto_map with trust": put("config.json", auto_map=EVIL, trust_remote_code=True),
    "auto_map beside a wrong class": put("config.json", auto_map={"AutoEverything": "evil.Evil"}),
    "auto_map deep inside": put("config.json", extra={"a": [{"b": {"auto_map": EVIL}}]}),
    "auto_map twice": raw(
        "generation_config.json", '{"auto_map": {}, "auto_map": {"AutoModel": "evil.Evil"}}'
    ),
    "auto_map in escapes": raw(
        "generation_config.json", r'{"\u0061uto_map": {"AutoModel": "evil.Evil"}}'
    ),
    "auto_map of the tokenizer": put(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    ),
    "auto_map of a slow tokenizer": put(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}
    ),
    "auto_map of the tokenizer, a list": put("tokenizer_config.json", auto_map=["evil.Evil", None]),
    "auto_map of images": put(
        "preprocessor_config.json",
        auto_map={"AutoImageProcessor": "evil.Evil"},
        image_processor_type="Evil",
    ),
    "auto_map of sounds": put(
        "preprocessor_config.json", auto_map={"AutoFeatureExtractor": "evil.Evil"}
    ),
    "auto_map of videos": put(
        "video_preprocessor_config.json", auto_map={"AutoVideoProcessor": "evil.Evil"}
    ),
    "auto_map of a folder": put("sub/config.json", auto_map=EVIL, model_type="bert"),
    "custom_pipelines": put(
        "config.json", custom_pipelines={"evil": {"impl": "evil.Evil", "pt": ["AutoModel"]}}
    ),
    "custom_generate": both(
        put("generation_config.json", custom_generate="./custom_generate"),
        raw("custom_generate/generate.py", CODE),
    ),
    "custom_generate, the folder alone": raw("custom_generate/generate.py", CODE),
    "a module of the model": raw("modeling_bert.py", CODE),
    "a handler": raw("handler.py", CODE),
    "modules named as libraries": both(
        raw("torch.py", CODE), raw("__init__.py", CODE), raw("sitecustomize.py", CODE)
    ),
}
OPENS = {  # as if it were not there
    "a pickle that nobody opens": pickled("training_args.bin", keep=True),
    "pickled weights beside good ones": pickled("pytorch_model.bin", keep=True),
    "another pickle beside them": pickled("optimizer.pt", keep=True),
    "a pickled checkpoint below": both(
        raw("checkpoint-1/config.json", "{}"), pickled("checkpoint-1/optimizer.pt", keep=True)
    ),
}
REFUSED = {
    "code of an unknown model": (
        put("config.json", model_type="evil", auto_map=EVIL),
        "would run evil.Evil",
    ),
    "code of a tokenizer of an unknown model": (
        both(
            put("config.json", model_type="evil"),
            put("tokenizer_config.json", auto_map=["evil.Evil", None]),
        ),
        "would run evil.Evil",
    ),
    "pickles alone": (pickled("pytorch_model.bin"), r"only pickles \(pytorch_model.bin\)"),
    "pickles of another name": (pickled("weights.dat"), r"only pickles \(weights.dat\)"),
    "pickles of an old protocol": (
        pickled("weights.dat", protocol=0),
        r"only pickles \(weights.dat\)",
    ),
    "pickles as torch writes them": (zipped("weights"), r"only pickles \(weights\)"),
    "a pickle called safetensors": (pickled("model.safetensors"), "model.safetensors is a pickle"),
    "a new pickle called safetensors": (
        pickled("model.safetensors", protocol=5),
        "model.safetensors is a pickle",
    ),
    "an old pickle called safetensors": (
        pickled("model.safetensors", protocol=0),
        "model.safetensors is a pickle",
    ),
    "a zip called safetensors": (zipped("model.safetensors"), "model.safetensors is a pickle"),
    "pickles behind their index": (
        both(
            pickled("pytorch_model-1.bin"),
            put(
                "pytorch_model.bin.index.json", metadata={}, weight_map={"a": "pytorch_model-1.bin"}
            ),
        ),
        "only pickles",
    ),
    "pickles behind an index of safetensors": (
        sharded("shard-1.bin"),
        "read shard-1.bin, which could be a pickle",
    ),
    "a pickled shard called safetensors": (
        sharded("shard-1.safetensors"),
        "shard-1.safetensors is a pickle",
    ),
    "pickles beside a decoy": (decoy("decoy.safetensors"), "only pickles"),
    "pickles beside a decoy in a folder": (decoy("sub/model.safetensors"), "only pickles"),
    "pickles by name in the configuration": (
        both(
            pickled("adapter_model.bin", keep=True),
            put("config.json", transformers_weights="adapter_model.bin"),
        ),
        "without an adapter",
    ),
    "weights outside by the configuration": (
        put("config.json", transformers_weights="../x.safetensors"),
        "outside itself",
    ),
    "weights outside": (
        sharded("../outside.safetensors", write=False),
        "outside itself; weight_map",
    ),
    "weights outside by a way around": (
        sharded("sub/../../outside.safetensors", write=False),
        "outside itself; weight_map",
    ),
    "weights at an absolute path": (
        sharded("OUT/outside.safetensors", write=False),
        "outside itself; weight_map",
    ),
    "weights that are not there": (
        sharded("none.safetensors", write=False),
        "none.safetensors, which is not there",
    ),
    "a link to weights outside": (
        linked("model.safetensors", "OUT/model.safetensors"),
        "model.safetensors is a link",
    ),
    "a link to a configuration outside": (
        linked("config.json", "OUT/config.json"),
        "config.json is a link",
    ),
    "a link to a tokenizer outside": (
        linked("tokenizer.json", "../outside/tokenizer.json"),
        "tokenizer.json is a link",
    ),
    "a link to a secret": (linked("notes.txt", "/etc/hostname"), "notes.txt is a link"),
    "a link to a folder": (linked("more", "OUT"), "more is a link"),
    "a link to a link": (
        both(linked("a.json", "OUT/a.json"), linked("b.json", "a.json")),
        "is a link",
    ),
    "a link to a device": (linked("vocab.txt", "/dev/zero"), "vocab.txt is a link"),
    "links in a circle": (
        both(linked("a.json", "b.json"), linked("b.json", "a.json")),
        "leads nowhere",
    ),
    "a pipe as configuration": (special("config.json", os.mkfifo), "config.json is a pipe"),
    "a pipe as tokenizer": (special("tokenizer.json", os.mkfifo), "tokenizer.json is a pipe"),
    "a pipe as weights": (special("model.safetensors", os.mkfifo), "model.safetensors is a pipe"),
    "a pipe that nobody opens": (special("notes", os.mkfifo), "notes is a pipe"),
    "a socket": (special("s", bind), "s is a socket"),
    "a kernel from a hub": (
        put("config.json", attn_implementation="org/kernel"),
        "would run org/kernel",
    ),
    "a kernel from a hub, inside": (
        put("config.json", sub={"_attn_implementation": "org/kernel:f"}),
        "would run org/kernel",
    ),
    "an activation that is a call": (
        put("config.json", hidden_act="os.system"),
        "would run os.system, the hidden_act",
    ),
    "an activation function that is one": (
        put("config.json", activation_function="evil.Evil"),
        "would run evil.Evil",
    ),
    "a tokenizer class of a package": (
        put("tokenizer_config.json", tokenizer_class="evil.Evil"),
        "would run evil.Evil",
    ),
    "a tokenizer file outside": (
        put("tokenizer_config.json", fast_tokenizer_files=["../tokenizer.9.json"]),
        "outside itself",
    ),
    "the library of an adapter": (
        put("adapter_config.json", auto_mapping={"parent_library": "evil"}),
        "would run evil",
    ),
    "a hundred thousand brackets": (raw("config.json", "[" * 100_000), "nested too deeply"),
    "brackets in another file": (
        raw("generation_config.json", '{"a":' * 100_000),
        "generation_config.json",
    ),
    "a number of 5,000 digits": (
        raw("generation_config.json", f'{{"a": {"9" * 5000}}}'),
        "generation_config.json",
    ),
    "what is not UTF-8": (raw("config.json", b'{"a": "\xff"}'), "not UTF-8"),
    "no JSON": (raw("tokenizer_config.json", "{'a': 1}"), "a tokenizer_config.json in the form"),
    "huge JSON": (sized("generation_config.json", 2**40), "at most 100 MB"),
    "a large configuration": (sized("processor_config.json", 20_000_000), "at most 16 MB a file"),
    "a number for a configuration": (raw("config.json", "3"), "a config.json in the form"),
    "a list for an index": (
        put("model.safetensors.index.json", weight_map=["model.safetensors"]),
        "index.json in the form",
    ),
    "an index that is a number": (
        raw("model.safetensors.index.json", "3"),
        "index.json in the form",
    ),
    "a type that is a list": (
        put("sub/config.json", model_type=["bert"], auto_map=EVIL),
        "would run evil.Evil",
    ),
    "a huge vocabulary": (sized("vocab.txt", 2**40), "at most 100 MB"),
    "much JSON": (
        both(*(sized(f"{number}.json", 15_000_000) for number in range(5))),
        "at most 64 MB of JSON",
    ),
    "huge weights": (sized("model.safetensors", 2**42), "weights that fit into"),
    "an empty file of weights": (raw("model.safetensors", ""), "does not open"),
    "a header of 2**60 bytes": (
        raw("model.safetensors", (2**60).to_bytes(8, "little") + b"{}"),
        "does not open",
    ),
    "a pointer in the place of weights": (
        raw("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        "does not open",
    ),
    **{
        f"10**9 {key}": (
            put("config.json", **{key: BIG}),
            f"the {key} of config.json is 1000000000, with room for at most",
        )
        for key in (
            "num_hidden_layers",
            "hidden_size",
            "vocab_size",
            "intermediate_size",
            "num_attention_heads",
            "max_position_embeddings",
        )
    },
    "10**5 layers": (put("config.json", num_hidden_layers=10**5), "num_hidden_layers"),
    "infinite layers": (
        raw("config.json", '{"num_hidden_layers": Infinity, "model_type": "bert"}'),
        "num_hidden_layers",
    ),
    "10**9 layers inside": (put("config.json", text_config={"n_layers": BIG}), "n_layers"),
    "no model": (
        lambda folder: (
            (folder / "config.json").unlink() or (folder / "modules.json").unlink(missing_ok=True)
        ),
        "no model",
    ),
    "architectures that are none": (
        put("config.json", architectures=[3]),
        "a config.json in the form",
    ),
}


def module(**changes):
    """A third module, of an encoder or a reranker."""

    def attack(folder):
        entry = {
            "idx": 2,
            "name": "2",
            "path": "2_Dense",
            "type": "sentence_transformers.models.Dense",
            **changes,
        }
        (folder / "modules.json").write_text(
            json.dumps([*json.loads((folder / "modules.json").read_text()), entry])
        )
        (folder / "2_Dense").mkdir()
        save_file({"linear.weight": torch.zeros(64, 64)}, folder / "2_Dense" / "model.safetensors")
        put("2_Dense/config.json", in_features=64, out_features=64, bias=False)(folder)

    return attack


ROUTER = {"types": {"0_Evil": "evil.Evil"}, "structure": {"query": ["0_Evil"]}, "parameters": {}}
LISTED = {  # where sentence-transformers opens modules
    **{
        f"the module {name}": (module(type=name), f"would run {name}")
        for name in (
            "evil.Evil",
            "os.system",
            "sentence_transformers_evil.Evil",
            "sentence_transformers.evil.Evil",
            "sentence_transformers.util.misc.import_from_string",
            "sentence_transformers.models.evil",
            "sentence_transformers.multi_vector_encoder.modules.token_pooling.LambdaTokenPooling",
        )
    },
    "a module outside": (module(path="../outside"), "outside itself; path"),
    "a module at an absolute path": (module(path="/tmp"), "outside itself; path"),
    "a router to a class": (
        both(
            module(type="sentence_transformers.models.Router"),
            put("2_Dense/router_config.json", **ROUTER),
        ),
        "would run evil.Evil",
    ),
    "an old router to a class": (
        both(
            module(type="sentence_transformers.models.Asym"), put("2_Dense/config.json", **ROUTER)
        ),
        "would run evil.Evil",
    ),
    **{
        f"the activation {name}": (
            both(module(), put("2_Dense/config.json", activation_function=name)),
            f"would run {name}",
        )
        for name in (
            "evil.Evil",
            "os.system",
            "torch.hub.load",
            "torch.distributed.run.main",
            "torch.nn.init.os",
        )
    },
    "a pickled module": (
        both(
            module(),
            lambda folder: (folder / "2_Dense/model.safetensors").rename(
                folder / "2_Dense/pytorch_model.bin"
            ),
        ),
        "2_Dense has only pickles",
    ),
    "a pickled module by another path": (
        both(
            module(path="./2_Dense/"),
            lambda folder: (folder / "2_Dense/model.safetensors").rename(
                folder / "2_Dense/pytorch_model.bin"
            ),
        ),
        "2_Dense has only pickles",
    ),
    "a module called safetensors": (
        both(module(), pickled("2_Dense/model.safetensors", keep=True)),
        "is a pickle",
    ),
    "a module of 10**18 weights": (
        both(module(), put("2_Dense/config.json", in_features=BIG, out_features=BIG)),
        "features",
    ),
    "arguments that name a file": (
        put("sentence_bert_config.json", tokenizer_args={"tokenizer_file": "/etc/hostname"}),
        "outside itself",
    ),
    "arguments that name a kernel": (
        put("sentence_bert_config.json", model_args={"attn_implementation": "org/kernel"}),
        "org/kernel",
    ),
    "a word tokenizer": (
        both(
            module(type="sentence_transformers.models.WordEmbeddings"),
            put("2_Dense/wordembedding_config.json", tokenizer_class="evil.Evil"),
        ),
        "would run evil.Evil",
    ),
}
PROCESSOR = {  # which sentence-transformers would open
    "auto_map of a processor that the library does not have": (
        put(
            "processor_config.json", auto_map={"AutoProcessor": "evil.Evil"}, processor_class="Evil"
        ),
        "contains custom code",
    ),
}
SCORED = {  # of a cross-encoder
    "an activation of scores": (
        put("config_sentence_transformers.json", activation_fn="os.system"),
        "would run os.system",
    ),
    "an activation of scores in the configuration": (
        put("config.json", sentence_transformers={"activation_fn": "evil.Evil"}),
        "evil.Evil",
    ),
    "an activation of scores under its old name": (
        put("config.json", sbert_ce_default_activation_function="evil.Evil"),
        "evil.Evil",
    ),
    "an activation of torch that is none": (
        put("config_sentence_transformers.json", activation_fn="torch.hub.load"),
        "torch.hub.load",
    ),
}
TRUSTING = {  # the library drops it
    "trust in the model's arguments": put(
        "sentence_bert_config.json", model_args={"trust_remote_code": True}
    ),
    "trust in the tokenizer's": put(
        "sentence_bert_config.json", tokenizer_args={"trust_remote_code": True}
    ),
}
FAMILIES = {
    "encoder": (write_model, LISTED | PROCESSOR),
    "causal": (write_causal, {}),
    "reranker": (write_reranker, SCORED | PROCESSOR),
}
OPENED = {**IGNORED, **OPENS, **TRUSTING}
ATTACKS = {
    family: {**dict.fromkeys(OPENED), **REFUSED, **own} for family, (_, own) in FAMILIES.items()
}
