"""A training on one process: it learns, it stops and goes on, it reads both formats, it refuses what it must."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from contextlib import nullcontext
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import Silent
from danqing.engine.evaluate.evaluation import evaluate
from danqing.engine.evaluate.results import Evaluation, read_evaluation
from danqing.engine.evaluate.suites import open_suite
from danqing.engine.evaluate.towers import open_towers
from danqing.engine.train import loop
from danqing.engine.train import model as model_of_training
from danqing.engine.train.evaluating import trained_towers
from danqing.engine.train.journal import open_journal
from danqing.engine.train.loader import Loader, TrainBatch
from danqing.engine.train.loop import TrainOptions, train
from danqing.engine.train.loss import siglip_loss
from danqing.engine.train.meter import Meter
from danqing.engine.train.model import Source, siglip_model, training_flops
from danqing.engine.train.order import Order
from danqing.engine.train.ranks import Ranks
from danqing.engine.train.recipe import load_train_recipe
from danqing.engine.train.shards import find_shards
from tests.engine.train.material import COLOURS, accuracy, journal, planted_pairs, write_checkpoint, write_run

RECIPE = load_train_recipe("danqing", ["batch=64", "learning_rate=3e-3", "warm_up_steps=5", "steps=100", "log_steps=1"])
TEMPLATES = ["{c}的画"]
CPU = TrainOptions(device="cpu", threads=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "run", planted_pairs(320))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), [text for _, text in planted_pairs(320)])


def write_suite(folder: Path) -> Path:
    """Writes planted classes as Chinese-CLIP packs ELEVATER's sets."""
    for number, (image, _) in enumerate(planted_pairs(64, seed=7)):
        place = folder / "test" / f"{number % len(COLOURS):03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(image)
    (folder / "label_cn.txt").write_text("\n".join(COLOURS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A suite of unseen pictures of the planted classes."""
    return str(write_suite(tmp_path_factory.mktemp("suite") / "planted"))


@pytest.fixture(scope="module")
def trained(run: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("trained") / "out"
    train([run], checkpoint, output, RECIPE, CPU)
    return output


def test_planted_classes_are_learnt_in_100_steps(trained: Path, checkpoint: Path, planted: str) -> None:
    assert accuracy(checkpoint, planted, TEMPLATES) < 0.5
    assert accuracy(trained / "model", planted, TEMPLATES) >= 0.9
    lines = journal(trained)
    assert [line["step"] for line in lines] == list(range(1, 101))
    assert lines[-1]["loss"] < lines[0]["loss"] / 2 and lines[4]["learning_rate"] == 3e-3
    assert json.loads((trained / "train.json").read_text())["steps"] == 100


def test_a_broken_picture_costs_its_row(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    pairs = planted_pairs(40)
    for number in (3, 17, 20):
        pairs[number] = pairs[number][0][: 60 * (number > 3)], pairs[number][1]
    broken = write_run(tmp_path / "run", pairs)
    trained = train([broken], checkpoint, tmp_path / "out", dataclasses.replace(RECIPE, batch=10, steps=4), CPU)
    assert trained.last["replaced"] == 3  # each is drawn once in an epoch, which has four batches
    uids, clean = ([uid for batch in made(folder, checkpoint, tmp_path, 10) for uid in batch.uids]
                   for folder in (broken, write_run(tmp_path / "clean", planted_pairs(40))))  # fmt: skip
    assert sum(a != b for a, b in zip(uids, clean, strict=True)) == 3


def test_damaged_shards_end_the_training(checkpoint: Path, tmp_path: Path) -> None:
    damaged = write_run(tmp_path / "run", [(b"no picture", "红的画")] * 20)
    with pytest.raises(DanqingError, match=r"00000\.parquet: neither a pair's picture nor those of 99 others"):
        train([damaged], checkpoint, tmp_path / "out", dataclasses.replace(RECIPE, batch=10, steps=2), CPU)


def made(run: Path, checkpoint: Path, folder: Path, batch: int, share: float = 0.0, steps: int = 4) -> list[TrainBatch]:
    """The batches of one epoch."""
    shards, source = find_shards([run]), Source.open(checkpoint)
    order = Order(tuple(shard.rows for shard in shards), batch)
    ranks = Ranks(0, 1, torch.device("cpu"), "cpu")
    loader = Loader(shards, folder / "index", order, source.image_input, source.tokenizer(), ranks, share, 2)
    with loader.batches(range(steps)) as batches:
        return list(batches)


def test_both_formats_give_the_same_batches(checkpoint: Path, tmp_path: Path) -> None:
    pairs = planted_pairs(80)
    runs = [write_run(tmp_path / form, pairs, form) for form in ("webdataset", "parquet")]
    for tar, table in zip(*(made(run, checkpoint, tmp_path, 20) for run in runs), strict=True):
        assert tar.uids == table.uids
        assert torch.equal(tar.pixels, table.pixels) and torch.equal(tar.tokens, table.tokens)


def test_recaptions_are_drawn_by_share(checkpoint: Path, tmp_path: Path) -> None:
    pairs = [(image, "红的画") for image, _ in planted_pairs(80)]
    run = write_run(tmp_path / "run", pairs, recaptions=["蓝的画"] * 79 + [""])
    texts = {share: [row for batch in made(run, checkpoint, tmp_path, 20, share) for row in batch.tokens.tolist()]
             for share in (0.0, 0.5, 1.0)}  # fmt: skip
    (red,), blue = set(map(tuple, texts[0.0])), max(texts[1.0], key=texts[1.0].count)
    assert texts[1.0].count(list(red)) == 1  # the pair without a recaption
    assert 25 <= texts[0.5].count(blue) <= 55 and texts[0.5].count(blue) + texts[0.5].count(list(red)) == 80


def test_logits_in_blocks_give_the_whole_loss() -> None:
    torch.manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(12, 6), dim=1).requires_grad_() for _ in range(2))
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    inputs = images, texts, scale, bias
    whole = siglip_loss(*inputs)
    signs = 2 * torch.eye(12) - 1
    expected = -torch.nn.functional.logsigmoid(signs * (10 * images @ texts.T - 10)).sum() / 12
    assert torch.allclose(whole, expected, atol=1e-6)
    gradients = torch.autograd.grad(whole, inputs)
    for block in (4, 5, 12):
        found = siglip_loss(*inputs, block=block)
        assert torch.allclose(found, whole, atol=1e-6)
        for a, b in zip(torch.autograd.grad(found, inputs), gradients, strict=True):
            assert (a - b).abs().max() <= 1e-6


def test_another_training_is_not_gone_on_with(trained: Path, run: Path, checkpoint: Path, tmp_path: Path) -> None:
    before = (trained / "train.jsonl").read_bytes()
    again = train([run], checkpoint, trained, RECIPE, CPU)
    assert again.last["step"] == 100 and (trained / "train.jsonl").read_bytes() == before
    with pytest.raises(DanqingError, match="holds another training:\n  seed: 0 there, 1 here"):
        train([run], checkpoint, trained, dataclasses.replace(RECIPE, seed=1), CPU)
    with pytest.raises(DanqingError, match="320 pairs are fewer than one batch of 12,288; --set batch=N"):
        train([run], checkpoint, tmp_path / "out", load_train_recipe(), CPU)
    with pytest.raises(DanqingError, match="no run here"):
        train([tmp_path], checkpoint, tmp_path / "out", RECIPE, CPU)
    with pytest.raises(DanqingError, match=r"config\.json: missing"):
        train([run], run, tmp_path / "out", RECIPE, CPU)
    with pytest.raises(DanqingError, match=r"--log-to tensorboard: .*pip install tensorboard"):
        train([run], checkpoint, tmp_path / "other", RECIPE, dataclasses.replace(CPU, log_to=("tensorboard",)))


def test_a_loss_that_is_no_number_ends_the_training(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match="the loss is nan; lower learning_rate"):
        train([run], checkpoint, tmp_path / "out", dataclasses.replace(RECIPE, learning_rate=1e30, steps=9), CPU)


def test_a_warm_up_that_is_longer_than_the_training_is_named(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    class Listening(Silent):
        def say(self, line: str) -> None:
            lines.append(line)

    recipe = dataclasses.replace(RECIPE, steps=2)
    train([run], checkpoint, tmp_path / "out", recipe, CPU, lambda *label: nullcontext(Listening()))
    assert lines == ["2 steps, and warm_up_steps is 5: the learning rate ends below 0.003; --set warm_up_steps=N"]


def test_a_gradient_that_is_no_number_ends_the_training(checkpoint: Path) -> None:
    """The step leaves weights that are not finite, which must not become the next checkpoint."""
    meter = Meter(Ranks(0, 1, torch.device("cpu"), "cpu"), Source.open(checkpoint).load(), 8)
    meter.add(torch.tensor(1.0), torch.tensor(float("nan")), 0)
    with pytest.raises(DanqingError, match="step 3: the norm of the gradient is nan; lower learning_rate"):
        meter.line(3, 1e-5)


def test_ranks_read_parts_of_the_same_batches(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    shards, source = find_shards([run]), Source.open(checkpoint)
    order = Order(tuple(shard.rows for shard in shards), 32)
    uids: dict[int, list[list[str]]] = {}
    for ranks in (1, 2, 4):
        parts = []
        for rank in range(ranks):
            one = Ranks(rank, ranks, torch.device("cpu"), "cpu")
            loader = Loader(shards, tmp_path, order, source.image_input, source.tokenizer(), one, threads=2)
            with loader.batches(range(5, 8)) as batches:
                parts.append([batch.uids for batch in batches])
        uids[ranks] = [[uid for part in step for uid in part] for step in zip(*parts, strict=True)]
    assert uids[1] == uids[2] == uids[4] and len(set(uids[1][0])) == 32


def test_train_export_evaluate(trained: Path, planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANQING_CACHE", str(tmp_path / "cache"))
    model = trained / "model"
    assert main(["models", "export", str(model)]) == 0
    suite = open_suite(planted)
    source = Source.open(model)
    pictures, texts = [image for image, _ in planted_pairs(24, seed=5)], [f"{colour}的画" for colour in COLOURS]
    with open_towers(str(model)) as exported, trained_towers("torch", source.load().eval(), source, "cpu") as towers:
        assert np.abs(exported.images(pictures) - towers.images(pictures)).max() <= 1e-5
        assert np.abs(exported.texts(texts) - towers.texts(texts)).max() <= 1e-5
        assert not towers.images([b"no picture"]).any()
        found = [evaluate(each, suite, TEMPLATES).rows[0].metrics for each in (exported, towers)]
    assert found[0] == found[1] and found[0]["acc1"] >= 0.9


def test_the_model_is_evaluated_while_it_is_trained(run: Path, checkpoint: Path, planted: str, tmp_path: Path) -> None:
    options = dataclasses.replace(CPU, suite=planted, every=2, metrics_port=0)
    train([run], checkpoint, tmp_path / "out", dataclasses.replace(RECIPE, steps=5), options)
    lines = [line for line in journal(tmp_path / "out") if "planted/acc1" in line]
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert read_evaluation(tmp_path / "out" / "evaluation.json").rows[0].metrics["acc1"] == lines[-1]["planted/acc1"]


def test_a_suite_with_a_fault_is_found_before_the_training(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "broken")
    for file in suite.rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(DanqingError, match="broken: no picture can be decoded"):
        train([run], checkpoint, tmp_path / "out", RECIPE, dataclasses.replace(CPU, suite=str(suite)))
    assert not (tmp_path / "out").exists()


def test_a_failing_evaluation_leaves_the_model(
    run: Path, checkpoint: Path, planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> Evaluation:
        raise DanqingError("the disk is full")

    recipe, options = dataclasses.replace(RECIPE, steps=2), dataclasses.replace(CPU, suite=planted)
    with monkeypatch.context() as patched, pytest.raises(DanqingError, match="the disk is full"):
        patched.setattr(loop, "evaluate", fail)
        train([run], checkpoint, tmp_path / "out", recipe, options)
    assert (tmp_path / "out" / "checkpoints" / "000002").is_dir()
    weights = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    assert train([run], checkpoint, tmp_path / "out", recipe, options).last["step"] == 2
    (line,) = [line for line in journal(tmp_path / "out") if "planted/acc1" in line]
    assert read_evaluation(tmp_path / "out" / "evaluation.json").rows[0].metrics["acc1"] == line["planted/acc1"]
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == weights


def test_a_damaged_checkpoint_is_passed_over(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, steps=4, checkpoint_steps=3)
    folder = tmp_path / "out" / "checkpoints"
    train([run], checkpoint, tmp_path / "out", recipe, CPU)
    model = tmp_path / "out" / "model"
    weights = (model / "model.safetensors").read_bytes()
    for damaged, file in (("000004", "__0_0.distcp"), ("000004", ".metadata")):
        shutil.rmtree(model)
        (folder / damaged / file).write_bytes(b"")
        train([run], checkpoint, tmp_path / "out", recipe, CPU)
        assert (model / "model.safetensors").read_bytes() == weights
        assert [line["step"] for line in journal(tmp_path / "out")] == [1, 2, 3, 4]
    shutil.rmtree(model)
    for file in folder.glob("*/__0_0.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DanqingError, match="checkpoints: no checkpoint can be read; remove this folder"):
        train([run], checkpoint, tmp_path / "out", recipe, CPU)


def test_the_arithmetic_of_the_published_b_32() -> None:
    tower = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = tower | {"vocab_size": 1000, "max_position_embeddings": 64, "projection_size": 768}
    kind = siglip_model().config_class
    config = kind(text_config=text, vision_config=tower | {"image_size": 256, "patch_size": 32})
    assert training_flops(config) / 1e9 == pytest.approx(67, rel=0.02)


def test_the_journal_is_served_to_prometheus(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open_journal(tmp_path, 3, {}, (), port, "127.0.0.1") as lines:
        lines.write({"step": 4, "loss": 1.5, "digits/acc1": 0.5})
        served = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    assert "danqing_train_loss 1.5" in served and "danqing_train_step 4.0" in served
    (tmp_path / "train.jsonl").write_text('{"step": 3}\n{"step": 4}\n{"ste')
    with open_journal(tmp_path, 3, {}, (), None, ""):
        assert journal(tmp_path) == [{"step": 3}]


def test_wrong_calls_of_the_command(
    run: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(run), "--from", str(checkpoint), "-o", str(tmp_path / "out")]
    for options, problem in (
        (["--set", "warmup=5"], "--set warmup=5: unknown key 'warmup'; did you mean 'warm_up_steps'?"),
        (["--recipe", "danqin"], "no training recipe 'danqin': did you mean 'danqing'?"),
        (["--evaluate", "digit", "--set", "batch=8"], "--suite digit: no such file or folder"),
        (["--every", "5", "--set", "batch=8"], "--every N is how often to evaluate: name a suite with --evaluate"),
        (["--recaption-share", "2"], "It must be a number from 0 to 1."),
        (["--recaption-share", "0.5", "--set", "batch=8"], "recaption_share is 0.5, and no shard has recaptions"),
    ):
        assert main([*command, *options]) == 2
        assert problem in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_an_output_inside_a_run_and_a_run_given_twice_are_refused(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match=r"is inside the run .*; choose an --output outside of it"):
        train([run], checkpoint, run / "a" / "out", RECIPE, CPU)
    (tmp_path / "other" / "scores").mkdir(parents=True)
    (tmp_path / "other" / "run.json").write_text("{}")
    with pytest.raises(DanqingError, match=r"is inside the run .*other; choose"):
        train([run], checkpoint, tmp_path / "other" / "model", RECIPE, CPU)
    with pytest.raises(DanqingError, match="run: is given twice"):
        train([run, run.parent / "." / "run"], checkpoint, tmp_path / "out", RECIPE, CPU)
    assert not (run / "a").exists()


def test_missing_shards_are_named(checkpoint: Path, tmp_path: Path) -> None:
    run, recipe = write_run(tmp_path / "run", planted_pairs(40)), dataclasses.replace(RECIPE, batch=8)
    (run / "shards" / "00001.tar").unlink()
    with pytest.raises(DanqingError, match=r"00001\.tar: is missing, and .* run `danqing write .*run` again"):
        train([run], checkpoint, tmp_path / "out", recipe, CPU)
    (run / "shards" / "00001.parquet").unlink()
    with pytest.raises(DanqingError, match="shards: holds 1 of the 2 shards that were written; run `danqing write"):
        train([run], checkpoint, tmp_path / "out", recipe, CPU)
    with pytest.raises(DanqingError, match="none: no pair was kept, so there is nothing to train on"):
        train([write_run(tmp_path / "none", [])], checkpoint, tmp_path / "out", recipe, CPU)
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_to_start_from_is_named(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    for file, change, problem in (
        ("tokenizer.model", lambda content: content[:50], r"tokenizer\.model: is damaged, or no SentencePiece model"),
        ("config.json", lambda content: content.replace(b'"intermediate_size": 64', b'"intermediate_size": 48'),
         r"start: \S+ is \(64.*, and config\.json asks for \(48"),
        ("config.json", lambda content: content.replace(b'"num_hidden_layers": 2', b'"num_hidden_layers": 1'),
         r"start: config\.json has no place for \S+layers\.1\."),
    ):  # fmt: skip
        shutil.copytree(checkpoint, start)
        content = (start / file).read_bytes()
        (start / file).write_bytes(change(content))
        assert (start / file).read_bytes() != content
        with pytest.raises(DanqingError, match=problem):
            train([run], start, tmp_path / "out", RECIPE, CPU)
        shutil.rmtree(start)
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_is_that_of_the_model(
    run: Path, checkpoint: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tokenizer of as many pieces; by the record in config.json, and by the hash of SigLIP 2's."""
    other = write_checkpoint(tmp_path / "other", [text.swapcase() + "天" for _, text in planted_pairs(320)])
    for number, model in enumerate((checkpoint, trained / "model")):
        start = Path(shutil.copytree(model, tmp_path / str(number)))
        Source.open(start)
        shutil.copyfile(other / "tokenizer.model", start / "tokenizer.model")
        with pytest.raises(DanqingError, match=r"tokenizer\.model: is not the tokenizer that the model was made with"):
            train([run], start, tmp_path / "out", RECIPE, CPU)
    config = json.loads((start / "config.json").read_text())
    del config["tokenizer_sha256"]
    (start / "config.json").write_text(json.dumps(config))
    assert "tokenizer.model" in Source.open(start).files  # nothing says what it was made with
    monkeypatch.setattr(model_of_training, "GEMMA_PIECES", config["text_config"]["vocab_size"])
    with pytest.raises(DanqingError, match=r"tokenizer\.model: is not the tokenizer .*, not 61a7b147390c6458…"):
        Source.open(start)


def test_a_checkpoint_that_lacks_weights_is_refused(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "part")
    weights = load_file(tmp_path / "part" / "model.safetensors")
    del weights["vision_model.head.probe"]
    save_file(weights, tmp_path / "part" / "model.safetensors", {"format": "pt"})
    with pytest.raises(DanqingError, match=r"part: the weights have no 'vision_model\.head\.probe', and lack 1"):
        train([run], tmp_path / "part", tmp_path / "out", RECIPE, CPU)
