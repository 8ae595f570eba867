"""The UNet's passes: what goes in beside z, t and the text, and whether they are recorded."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.func import functional_call

from gooddrag.backbones.adapters import AdapterBank
from gooddrag.backbones.engine import Engine
from gooddrag.backbones.graphs import GraphedPasses
from gooddrag.backbones.mutual import MutualLayers


class UNetPasses:
    """Gives the UNet's output and F(z_t), in the UNet's precision.

    Args:
        unet: the network.
        engine: says whether passes are recorded as CUDA graphs.
        feature_block: the up block whose output is F(z_t).
        adapters: whose matrices go into a pass while they are in use.
        mutual: its self-attention.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        engine: Engine,
        feature_block: int,
        adapters: AdapterBank,
        mutual: MutualLayers,
    ) -> None:
        self.unet, self.adapters, self.mutual = unet, adapters, mutual
        self._graphs, self._other_graphs = (
            GraphedPasses(engine.max_graphs) if engine.graphs else None for _ in range(2)
        )
        self._features: Tensor | None = None
        unet.up_blocks[feature_block].register_forward_hook(self._keep_features)

    @property
    def are_recorded(self) -> bool:
        """Whether passes are replayed."""
        return self._graphs is not None

    def clear(self) -> None:
        """Forget what is recorded, and let its memory go."""
        self._features = None
        for graphs in (self._graphs, self._other_graphs):
            if graphs is not None:
                graphs.clear()

    def __call__(self, z: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The UNet's output and its features, valid until the next pass.

        Args:
            z: latents, in the UNet's precision.
            t: one timestep, or one for each latent, on the device.
            text: embeddings, one for each latent.
        """
        if self._graphs is None:
            return self.unrecorded(z, t, text)
        # the masks of mutual attention are read, not passed
        attention, masks = self.mutual.state()
        weights = self._weights()
        name = (attention, len(weights), self.adapters.summed, self.adapters.own)
        output, features = self._graphs(name, self._pass, (z, t, text), (*weights, *masks))
        return output, features

    def unrecorded(self, z: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The same, kernel by kernel."""
        return self._pass(z, t, text, *self._weights())

    def _weights(self) -> tuple[Tensor, ...]:
        """The adapters' matrices, if they are in use."""
        return () if self.adapters.flat is None else (self.adapters.flat,)

    def _pass(self, z: Tensor, t: Tensor, text: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        """The UNet's output and its features, with the adapters' matrices if they are in use."""
        given = {} if self.adapters.flat is None else self.adapters.hand_out(weights[0])
        context = {"encoder_hidden_states": text}
        if given:
            output: Tensor = functional_call(self.unet, given, (z, t), context).sample
        else:
            output = self.unet(z, t, **context).sample
        features, self._features = self._features, None
        assert features is not None, "the feature block did not run"
        return output, features

    def _keep_features(self, module: object, args: object, output: Tensor) -> None:
        self._features = output

    def replayed(
        self,
        name: Hashable,
        function: Callable[..., tuple[Tensor, ...]],
        inputs: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """function(*inputs), recorded where the UNet's passes are.

        Its memory is apart from theirs, since it runs between a forward and its backward.

        Args:
            name: tells functions apart.
            function: of tensors on the device alone, that never waits for it.
            inputs: its arguments.
        """
        if self._other_graphs is None:
            return function(*inputs)
        return tuple(x.clone() for x in self._other_graphs(name, function, inputs))

    @contextmanager
    def with_bottleneck(self, hook: Callable[..., Tensor | None]) -> Iterator[None]:
        """Call a hook on the middle block, in passes that are not replayed."""
        graphs, self._graphs = self._graphs, None
        handle = self.unet.mid_block.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
            self._graphs = graphs
