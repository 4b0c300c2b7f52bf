"""MixMo in the real trainers of other libraries, to an accuracy that a broken integration would miss."""

from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset

import mixmo
from mixmo.errors import InputError
from mixmo.integrations.lightning import MixMoModule

EPOCHS, BATCH, REPETITION = 8, 32, 2


@pytest.fixture(scope="module")
def digits():
    """Loaders of 600 training digits and 400 others."""
    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(found.target)
    train, test = train_test_split(np.arange(1000), train_size=600, stratify=found.target[:1000], random_state=0)
    sets = {name: TensorDataset(images[part], labels[part]) for name, part in {"train": train, "test": test}.items()}
    shuffled = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        train=DataLoader(sets["train"], BATCH // REPETITION, shuffle=True, drop_last=True, generator=shuffled),
        test=DataLoader(sets["test"], 100),
        labels=sets["test"].tensors[1],
        images=sets["test"].tensors[0],
    )


@pytest.fixture
def net():
    torch.manual_seed(0)
    return mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=10, in_chans=1)


def mixer_of(net, **options):
    return mixmo.BatchMixer(net, "cut", batch_repetition=REPETITION, input_repetition=0.5, **options)


def accuracy(net, digits):
    with torch.no_grad():
        return (net.eval()(digits.images).argmax(1) == digits.labels).float().mean().item()


SGD = partial(torch.optim.SGD, lr=0.1 / REPETITION, momentum=0.9, weight_decay=1e-3, nesterov=True)


def cosine(digits):
    return partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=EPOCHS * len(digits.train))


def trainer(tmp_path, **options):
    return L.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False,
                     enable_model_summary=False, default_root_dir=tmp_path, **options)  # fmt: skip


def test_lightning(net, digits, tmp_path):
    module = MixMoModule(net, mixer_of(net), SGD, cosine(digits))
    own = trainer(tmp_path)
    own.fit(module, digits.train, digits.test)
    found = {key: float(value) for key, value in own.callback_metrics.items()}
    assert found["val_accuracy"] == pytest.approx(accuracy(net, digits), abs=1e-6) and found["val_accuracy"] > 0.93
    assert min(found[f"val_member_{number}_accuracy"] for number in (0, 1)) > 0.85
    predicted = torch.cat(own.predict(module, digits.test))
    assert predicted.shape == (400, 2, 10)
    torch.testing.assert_close(predicted.mean(1), net(digits.images), rtol=1e-4, atol=1e-4)


def test_lightning_with_probabilities_two_loaders_and_a_compiled_module(digits, tmp_path):
    """Batches of as many images as classes, for which labels of a wrong shape would broadcast."""
    images, labels = digits.images[:10], digits.labels[:10]
    soft = torch.nn.functional.one_hot(labels, 10).float()
    loaders = [DataLoader(TensorDataset(images, each), 10) for each in (soft, labels.int())]
    module = MixMoModule(net := mixmo.MixMo("wide_resnet10_1", num_classes=10, in_chans=1), mixer_of(net), SGD)
    own = trainer(tmp_path, limit_train_batches=2)
    own.validate(module, loaders)
    for key in ("val_accuracy", "val_nll", "val_member_1_accuracy"):
        one, other = (float(own.callback_metrics[f"{key}/dataloader_idx_{loader}"]) for loader in (0, 1))
        assert one == pytest.approx(other)
    own = trainer(tmp_path, limit_train_batches=2)
    own.fit_loop.max_epochs = 1
    own.fit(torch.compile(module, backend="eager"), digits.train)
    assert own.callback_metrics["train_loss"].isfinite()


class Saved(L.Callback):
    """Saves a checkpoint of the first epoch."""

    def __init__(self, file):
        self.file = file

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_resumes_as_the_same_training(digits, tmp_path, accumulate):
    """As far as the loader is deterministic: here each epoch is in order."""
    loader, ends = DataLoader(digits.train.dataset, 16, drop_last=True), []
    for file in (None, tmp_path / "x.ckpt"):
        torch.manual_seed(len(ends))
        net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=10, in_chans=1)
        own = trainer(tmp_path, limit_train_batches=4, accumulate_grad_batches=accumulate,
                      callbacks=[Saved(tmp_path / "x.ckpt")], enable_checkpointing=False)  # fmt: skip
        own.fit_loop.max_epochs = 2
        own.fit(MixMoModule(net, mixer_of(net), SGD), loader, ckpt_path=file, weights_only=True)
        ends.append(net.state_dict())
    assert all(torch.equal(tensor, ends[1][key]) for key, tensor in ends[0].items())


def test_timm(net, digits):
    task_module = pytest.importorskip("timm.task", reason="this timm has no tasks")
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter
    from timm.utils import accuracy as top

    from mixmo.integrations.timm import MixMoTask

    task = MixMoTask(net, mixer_of(net), steps=EPOCHS * len(digits.train), verbose=False)
    assert isinstance(task, task_module.TrainingTask)
    optimizer = create_optimizer_v2(net, "sgd", lr=0.05, momentum=0.9, weight_decay=1e-3)
    scheduler = cosine(digits)(optimizer)
    task.setup_ema(decay=0.9)
    for _ in range(EPOCHS):
        task.train()
        for images, labels in digits.train:
            result = task(images, labels)
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()
            scheduler.step()
            task.update_ema()
    for ema in (False, True):
        meter, model = AverageMeter(), task.get_eval_model(ema=ema).eval()
        with torch.no_grad():
            for images, labels in digits.test:
                meter.update(top(model(images), labels)[0].item(), len(labels))
        assert meter.avg > 93
    state = task.get_checkpoint_state()
    again = MixMoTask(net, mixer_of(net), steps=1, verbose=False)
    again.load_checkpoint_state(state["state_dict"], state["task_state"])
    assert again.step == EPOCHS * len(digits.train)
    with pytest.raises(InputError, match="steps is 0"):
        MixMoTask(net, mixer_of(net), steps=0)


@pytest.mark.slow
def test_transformers(net, digits, tmp_path):
    """Its Trainer with a ``compute_loss`` of a few lines, as docs/own-loop.md has it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    mixer = mixer_of(net)

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            images, labels = inputs["pixel_values"], inputs["labels"]
            if model.training:
                batch = mixer(images, labels, self.state.global_step / self.state.max_steps)
                return batch.loss(model(batch.inputs, batch.masks))
            logits = model(images)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            return (loss, {"logits": logits}) if return_outputs else loss

    def collate(samples):
        images, labels = zip(*samples, strict=True)
        return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}

    options = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=EPOCHS, per_device_train_batch_size=16, learning_rate=3e-3, use_cpu=True,
        remove_unused_columns=False, label_names=["labels"], report_to=[], save_strategy="no", disable_tqdm=True,
        dataloader_drop_last=True, lr_scheduler_type="cosine",
    )  # fmt: skip
    own = Trainer(
        net, options, data_collator=collate, train_dataset=digits.train.dataset, eval_dataset=digits.test.dataset,
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()},
    )  # fmt: skip
    own.train()
    found = own.evaluate()["eval_accuracy"]
    assert found == pytest.approx(accuracy(net, digits), abs=1e-6) and found > 0.93


def test_torch_uncertainty(net, digits, tmp_path):
    """Its ClassificationRoutine evaluates a MixMo network, a classifier like any other."""
    routines = pytest.importorskip("torch_uncertainty.routines", reason="torch-uncertainty is not installed")
    mixer, optimizer = mixer_of(net), SGD(net.parameters())
    for images, labels in digits.train:
        batch = mixer(images, labels)
        optimizer.zero_grad()
        batch.loss(net(batch.inputs, batch.masks)).backward()
        optimizer.step()
    routine = routines.ClassificationRoutine(
        num_classes=10, model=net, loss=torch.nn.CrossEntropyLoss(), is_ensemble=False
    )
    (found,) = trainer(tmp_path).test(routine, digits.test, verbose=False)
    (value,) = (value for key, value in found.items() if key.endswith("cls/Acc"))
    assert value == pytest.approx(accuracy(net, digits), abs=1e-6) and value > 0.2
