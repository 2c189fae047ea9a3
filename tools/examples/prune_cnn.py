"""Remove half of all channels of a CNN and restore its accuracy from 512 images, without training."""

import graphprune as gp
from tools.examples.small_cnn import accuracy, trained

model, train, test = trained()  # yours: a module in eval mode, and batches (images, classes)
before = accuracy(model, test)
calibrate = gp.Calibrate(batches=tuple(((images,), {}) for images, _ in train[:8]))  # args and kwargs of the model
choose = gp.Analyze(), calibrate, gp.Score("fasp"), gp.Allocate(ratio=0.5), gp.Select()
restore = gp.Rewrite(), gp.Refit(), gp.Norms(), gp.Verify()
program = gp.trace(model, (train[0][0],))
small = gp.Pipeline((*choose, *restore))(program)
print(small.write_back(model))  # the same module, with narrower layers
print(f"parameters {program.count():,} -> {small.count():,}")
print(f"accuracy {before:.1%} -> {accuracy(model, test):.1%}")
