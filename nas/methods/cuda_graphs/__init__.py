"""Supernets by replay: what a step launches on a GPU is recorded once, as CUDA graphs, and replayed from then on.

A step of a small network is bound by launching its kernels, not by running them, and a supernet cannot be recorded as a
whole, for every step runs another part of it. So each operation is recorded alone, forward and backward, between
tensors that stay where they are. A pass replays those that are drawn one after the other, without autograd, to which
the whole supernet is a single function.

A recorder may also compose what it has recorded: then a pass is one launch, which says what runs at each place.

What it asks of a model:
- Its forward pass can be traced (see `nas.methods.cuda_graphs.trace`), or else as much of it as can is replayed.
- Modules compute the same whenever they are called, from their input, weights and buffers. What else they depend on, as
  the mode of a part or a number in Python, stays what it was when they were recorded; buffers are moved in place.
- Weights and buffers stay where they are: no ``.to()``, no ``load_state_dict(assign=True)``.
- Hooks inside need not run.

What it gives: a pass is differentiated once, before the next one, by ``backward()``. Weights get their gradients in
``.grad``, past autograd, valid until the next pass.

What it costs: the candidates of a choice share a piece of memory, so that each choice has for good what the largest of
them takes; the gradient of every weight, and every node's value and gradient, have a place of their own; all of it once
more for every other shape of the input. A candidate's first step takes some ten times as long. Recordings are kept as
long as the recorder.
"""
