"""Cut-MixMo in Hugging Face's Trainer: override ``compute_loss``; evaluation uses the network unchanged.

pip install transformers accelerate
python examples/with_transformers.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainingArguments

import mixmo

EPOCHS, REPETITION = 20, 2
torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32), torch.tensor(digits.target)
train, test = train_test_split(range(len(labels)), train_size=600, stratify=labels, random_state=0)
net = mixmo.MixMo("wide_resnet10_1", num_members=2, num_classes=10, in_chans=1)
mixer = mixmo.BatchMixer(net, "cut", batch_repetition=REPETITION, input_repetition=0.5)


class MixMoTrainer(Trainer):
    """Trains on mixtures, and evaluates on images."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss, and in evaluation also the ensemble's logits."""
        if model.training:
            batch = mixer(inputs["images"], inputs["labels"], self.state.global_step / self.state.max_steps)
            return batch.loss(model(batch.inputs, batch.masks))
        logits = model(inputs["images"])
        loss = cross_entropy(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss


def collate(samples):
    """Collate samples into the names that ``compute_loss`` reads."""
    return dict(zip(("images", "labels"), map(torch.stack, zip(*samples, strict=True)), strict=True))


arguments = TrainingArguments(
    "runs/with-transformers", num_train_epochs=EPOCHS, per_device_train_batch_size=32 // REPETITION,
    learning_rate=3e-3, lr_scheduler_type="cosine", dataloader_drop_last=True, remove_unused_columns=False,
    label_names=["labels"], report_to=[], save_strategy="no", logging_strategy="no",
)  # fmt: skip
trainer = MixMoTrainer(
    net, arguments, data_collator=collate,
    train_dataset=TensorDataset(images[train], labels[train]), eval_dataset=TensorDataset(images[test], labels[test]),
    compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()},
)  # fmt: skip
trainer.train()
print(trainer.evaluate())
