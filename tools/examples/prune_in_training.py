"""Train a CNN and prune it meanwhile: a round after each of five epochs, then three more epochs."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import graphprune as gp
from tools.examples.small_cnn import Batch, SmallCNN, accuracy, stripes


def loss(logits: Tensor, batch: Batch) -> Tensor:
    """Yours, of an output and a batch."""
    return cross_entropy(logits, batch[1])


torch.manual_seed(0)
model, train, test = SmallCNN(), stripes(2048, seed=0), stripes(2048, seed=1)
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=8 * len(train))
pruner = gp.Pruner(
    model, (train[0][0],), recipe="taylor", sparsity=0.7, rounds=5, schedule="cubic", optimizer=optimizer,
    data=train, loss=loss, regularizer="group-lasso",
)  # fmt: skip
for _ in range(8):
    for batch in train:
        (loss(model(batch[0]), batch) + pruner.penalty()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    if not pruner.done:
        print(pruner.step())
print(f"accuracy {accuracy(model.eval(), test):.1%}, {sum(p.numel() for p in model.parameters()):,} parameters")
