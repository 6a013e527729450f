"""The room of tasks: data, metric, trained model; enter it through `catalog`, which imports no torch."""
