"""Records the GPU work of supernet steps as CUDA graphs once, and replays the recordings from then on.

For a small network, launching kernels takes longer than running them. The whole supernet cannot be recorded, because
every step runs another part of it. So each operation is recorded alone, forward and backward, between tensors that
keep their place in memory. A pass replays the drawn operations one after the other, without autograd. Autograd sees
the whole supernet as a single function.

A recorder may also compose the recordings into one graph. Then a pass is one launch. The launch sets the candidate
that runs at each place.

Requirements on a model:
- Its forward pass can be traced (see `nas.methods.cuda_graphs.trace`). Otherwise the parts that can be traced are
  replayed.
- A module computes the same whenever it is called, from its input, weights and buffers. Anything else it depends on,
  such as a Python number, keeps the value of the recording. Buffers are changed in place. Weights that a hook freezes
  and modes of parts are followed from the next epoch on.
- Weights and buffers keep their place in memory: no ``.to()``, no ``load_state_dict(assign=True)``.
- Hooks that modules get after the beginning need not run.

Restrictions on the caller: a pass is differentiated once, before the next pass, by ``backward()``. Weights receive
their gradients in ``.grad`` without autograd; the gradients are valid until the next pass.

Costs: the candidates of a choice share memory, so each choice permanently holds what its largest candidate needs. The
gradient of every weight, and the value and gradient of every node, have memory of their own. All of this is needed
again for every other shape of the input. The first step of a candidate takes about ten times as long. Recordings are
kept as long as the recorder.
"""
