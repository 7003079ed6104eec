"""A dense checkpoint in, a Stille model with experts out: as a delta on its base, or whole.

- `pipeline.convert`: all of it, resumable;
- `split`: which neurons are shared, and which expert each other one belongs to;
- `router`, `calibrate`: the gate of a layer, and the thresholds that make it meet any mean number of experts;
- `delta`: the delta's files, and a model of base and delta (`stille.model.load_model` reads such folders).

Letters: L layers, T or N tokens, C hidden size, I inner neurons of a dense FFN, S shared ones, E experts, R inner width
of a gate.
"""
