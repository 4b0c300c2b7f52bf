"""Search settings of Cut-MixMo on the digits with Ray Tune: random search, with ASHA stopping poor trials early.

python examples/with_ray.py       # pip install 'mixmo[ray]'; the same command resumes an interrupted search

The best run by validation accuracy is tested once. On a cluster, call ``ray.init("auto")`` first, and set ``RUNS`` to a
folder that all machines share.
"""

from pathlib import Path

from lightning.pytorch.callbacks import Callback
from ray import tune
from ray.tune.schedulers import ASHAScheduler

import mixmo

RUNS = Path("runs/search").resolve()
EPOCHS, SAMPLES = 12, 6
ASHA = ASHAScheduler(grace_period=3, max_t=EPOCHS)


class Report(Callback):
    """Reports the accuracy on validation images."""

    def on_train_epoch_end(self, trainer, pl_module):
        """Report it after each epoch."""
        tune.report({"val_accuracy": float(trainer.callback_metrics["val_accuracy"])})


def folder_of(config):
    """Return the folder of a trial's run."""
    return RUNS / "lr-{lr:.4f}_alpha-{mixer_alpha:.2f}".format(**config)


def train(config):
    """Train or resume one trial."""
    mixmo.fit(recipe="digits-cut", out=folder_of(config), resume=True, callbacks=[Report()], epochs=EPOCHS,
              images_per_class=40, progress=False, **config)  # fmt: skip


def main():
    """Run the search and test the best run."""
    storage = RUNS / "ray"
    if tune.Tuner.can_restore(str(storage)):
        tuner = tune.Tuner.restore(str(storage), train, resume_unfinished=True, resume_errored=True)
    else:
        tuner = tune.Tuner(
            train,
            param_space={"lr": tune.loguniform(0.01, 0.3), "mixer_alpha": tune.uniform(1, 4)},
            tune_config=tune.TuneConfig("max", "val_accuracy", scheduler=ASHA, num_samples=SAMPLES),
            run_config=tune.RunConfig(name="ray", storage_path=str(RUNS)),
        )
    best = tuner.fit().get_best_result()
    print("best on validation images:", best.config, best.metrics["val_accuracy"])
    print("on test images:", mixmo.Run(folder_of(best.config)).test()["accuracy"])


if __name__ == "__main__":
    main()
