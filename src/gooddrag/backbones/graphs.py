"""CUDA graphs of a model's passes: recorded once for each shape, then replayed in one call.

A pass through a UNet is about two thousand small kernels, and launching them one by one takes the
host several times longer than the device needs to run them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

Pass = Callable[..., tuple[Tensor, ...]]


class GraphedPasses:
    """Runs functions of tensors as CUDA graphs, backward included.

    All graphs share one memory pool: they are replayed one after another, and what one leaves
    behind may be overwritten by the next. Results are therefore valid until the next call, and a
    backward has to follow its own forward.

    Args:
        limit: graphs to keep; the one unused for longest goes first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget all graphs and let their memory go."""
        self._graphs: OrderedDict[Hashable, Pass] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(
        self,
        name: Hashable,
        function: Pass,
        inputs: Sequence[Tensor],
        weights: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """function(*inputs, *weights), recorded at the first call of its kind.

        Args:
            name: tells functions, or states of what they read, apart.
            function: of tensors on the device alone, that never waits for it.
            inputs: copied into the graph at each call.
            weights: read in place, so that they have to stay where they are; those that require
                gradients get them.
        """
        key = (
            name,
            torch.is_grad_enabled(),
            tuple((tuple(x.shape), x.dtype, x.requires_grad) for x in inputs),
            tuple((x.data_ptr(), x.requires_grad) for x in weights),
        )
        if key not in self._graphs:
            while len(self._graphs) >= self.limit:
                self._graphs.popitem(last=False)
            places = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs)
            warm_up(function, (*places, *weights))
            clear_workspaces()
            torch.cuda.empty_cache()  # what the first run took is not the graph's
            recorded: Any = torch.cuda.make_graphed_callables(
                function, (*places, *weights), num_warmup_iters=0, pool=self._pool
            )
            self._graphs[key] = recorded
            clear_workspaces()
        self._graphs.move_to_end(key)
        return self._graphs[key](*inputs, *weights)


def warm_up(function: Pass, inputs: Sequence[Tensor]) -> None:
    """Run forward and backward once: what libraries load and plan then cannot be recorded."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # the present one would stay tied to the gradients
        outputs = [y for y in function(*inputs) if y.requires_grad]
        if outputs:
            leaves = [x for x in inputs if x.requires_grad]
            torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs])
    torch.cuda.synchronize()


def clear_workspaces() -> None:
    """Let cuBLAS take its scratch memory anew, within the graph that is recorded next.

    It takes some for each stream and keeps it. Taken while warming up, or for a graph of another
    model, it may be gone by the time of a replay; streams are handed out in turns, so that a
    recording may well be on one that something has run on before.
    """
    torch._C._cuda_clearCublasWorkspaces()
