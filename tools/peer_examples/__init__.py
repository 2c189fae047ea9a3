"""Five tasks, each as a user writes it with graphprune and with Torch-Pruning: `run(model, loader, loss)`."""
