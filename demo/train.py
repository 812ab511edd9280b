"""Trains the demo's surface-defect classifier and writes it as an ONNX file.

    python -m demo.train [--pictures 40000] [--threads 2] [--out demo/models/surface-defects/model.onnx]

Needs torch; running the finished model doesn't. The pictures come from `demo.surfaces`, and each is seen
once: a generator that never repeats itself needs neither a data set on disk nor a guard against learning it
by heart.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from demo import surfaces
from demo.surfaces import LABELS, SIZE

SEED = 20_240_611
BATCH = 32
MODEL = Path(__file__).parent / "models" / "surface-defects" / "model.onnx"
OPSET = 17  # well within what ONNX Runtime 1.18 reads, the oldest that the edge may have


def main() -> None:
    """Train, export, and print how well the exported file does on pictures that training never drew."""
    parser = argparse.ArgumentParser(description="train the demo's surface-defect classifier")
    parser.add_argument("--pictures", type=int, default=40_000, help="pictures to train on, each seen once")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--out", type=Path, default=MODEL, help="the ONNX file to write")
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    network = classifier().to(memory_format=torch.channels_last)  # a quarter less time to train on a CPU
    train(network, arguments.pictures)
    export(network, arguments.out)
    print(f"wrote {arguments.out}: {arguments.out.stat().st_size / 1e3:.0f} kB")
    print(table(confusion(arguments.out)))


def classifier() -> nn.Sequential:
    """A plain convolutional network, [batch, 1, SIZE, SIZE] in 0…1 to [batch, labels] logits."""

    def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]

    return nn.Sequential(
        *convolution(1, 32, kernel=5, stride=2),
        *convolution(32, 48),
        *convolution(48, 48),
        *convolution(48, 64, stride=2),
        *convolution(64, 64),
        *convolution(64, 64),
        *convolution(64, 64, stride=2),
        *convolution(64, 64, stride=2),
        nn.AdaptiveMaxPool2d(1),  # is a defect anywhere? its size does not count
        nn.Flatten(),
        nn.Linear(64, len(LABELS)),
    )


def train(network: nn.Sequential, pictures: int) -> None:
    """Fit `network` to `pictures` generated pictures, by AdamW; the learning rate rises and falls once."""
    steps = math.ceil(pictures / BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps, pct_start=0.2)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.02)
    network.train()
    begun, running = time.monotonic(), math.log(len(LABELS))
    for step, (batch, truth) in zip(range(1, steps + 1), batches("train"), strict=False):
        loss = loss_of(network(torch.from_numpy(batch)), torch.from_numpy(truth))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        running += 0.02 * (float(loss) - running)
        if step % 100 == 0:
            took = time.monotonic() - begun
            print(f"{step * BATCH:>7,} pictures  loss {running:.3f}  {took:.0f} s", flush=True)
    network.eval()


def batches(use: str) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Endless (pictures [BATCH, 1, SIZE, SIZE] in 0…1, label numbers [BATCH]); each `use` draws its own."""
    rng = np.random.default_rng([SEED, *use.encode()])
    while True:
        truth = rng.integers(len(LABELS), size=BATCH)
        pixels = np.stack([_through_a_camera(rng, LABELS[number]) for number in truth])
        yield np.divide(pixels[:, np.newaxis], 255, dtype=np.float32), truth


def _through_a_camera(rng: np.random.Generator, label: str) -> surfaces.Pixels:
    """A picture's pixels, half the time after a JPEG's losses: the demo's cameras send both kinds."""
    pixels = surfaces.render(rng, label)
    return pixels if rng.random() < 0.5 else surfaces.decode(surfaces.encode(pixels, "jpeg"))


def export(network: nn.Sequential, path: Path) -> None:
    """Write `network`, with a softmax behind it, to one ONNX file whose batch size is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        nn.Sequential(network, nn.Softmax(dim=1)).eval(),
        (torch.zeros(1, 1, SIZE, SIZE),),
        str(path),
        input_names=["image"],
        output_names=["prob"],
        dynamic_axes={"image": {0: "batch"}, "prob": {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,
    )


def confusion(path: Path, pictures: int = 6_000) -> NDArray[np.int64]:
    """How often the model at `path` took label i (row) for label j (column), on unseen pictures."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    counts = np.zeros((len(LABELS), len(LABELS)), np.int64)
    for _, (batch, truth) in zip(range(math.ceil(pictures / BATCH)), batches("held out"), strict=False):
        (prob,) = session.run(["prob"], {"image": batch})
        np.add.at(counts, (truth, prob.argmax(axis=1)), 1)
    return counts


def table(counts: NDArray[np.int64]) -> str:
    """`counts` (truth × answer) as a Markdown table with the accuracy above it."""
    lines = [
        f"Accuracy {counts.trace() / counts.sum():.2%} on {counts.sum():,} held-out pictures.",
        "",
        f"| truth \\ answer | {' | '.join(LABELS)} | recall |",
        f"| --- |{' ---: |' * (len(LABELS) + 1)}",
    ]
    for label, row in zip(LABELS, counts, strict=True):
        cells = " | ".join(str(count) for count in row)
        lines.append(f"| **{label}** | {cells} | {row[LABELS.index(label)] / row.sum():.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
