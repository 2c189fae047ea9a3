"""Remove half of all channels of a CNN and restore its accuracy from 512 images, without training."""

import graphprune as gp
from tools.examples.small_cnn import accuracy, loss, right, trained

model, train, test = trained()  # yours: a module, and batches (images, classes), such as a DataLoader
result = gp.prune(model, data=train, loss=loss, metric=right, test=test, ratio=0.5)
print(result.report)
print(f"the narrow model itself: accuracy {accuracy(model, test):.1%}")
