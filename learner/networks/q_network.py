"""The Q-network in torch: an encoder, a recurrent core or none, and a head, on observations scaled as their space
says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from learner.networks.recurrent import RecurrentCore
from replay.chunk import Schema


class QOutput(NamedTuple):
    """Values of a batch of states.

    ``q`` <float32>[B, A]: expected values, all that acting and metrics need. ``distribution`` <float32>[B, A, N]: what
    a distributional head knows of the return, such as its quantiles; None of other heads.
    """

    q: Tensor
    distribution: Tensor | None = None


@runtime_checkable
class FoldedWeight(Protocol):
    """A layer that computes its weight from its parameter ``weight``."""

    def folded_weight(self) -> Tensor:
        """Returns the weight that the layer is made with."""


class QNetwork(nn.Module):
    """An encoder and a head, and a recurrent core between the two or None. Only parameters are learned, copied and
    published: no buffers (such as batch norm's)."""

    def __init__(self, encoder: nn.Module, head: nn.Module, schema: Schema, core: RecurrentCore | None = None) -> None:
        """Raises ValueError where encoder or head has buffers, which target and average would not follow."""
        super().__init__()
        self.encoder, self.core, self.head = encoder, core, head
        self._divisor, self._picture = schema.obs_divisor, schema.picture_shape
        if buffers := [name for name, _ in self.named_buffers()]:
            raise ValueError(f"only parameters are copied and published; the network has buffers: {', '.join(buffers)}")

    def forward(self, obs: Tensor) -> QOutput:
        """Maps obs <obs_dtype>[B, *input_shape], or what ``scaled`` made of them, to the values of its states, without
        a core."""
        output: QOutput = self.head(self.features(obs))
        return output

    def step(self, obs: Tensor, state: Mapping[str, Tensor]) -> tuple[QOutput, Mapping[str, Tensor]]:
        """Maps obs <obs_dtype>[B, *input_shape] and the lanes' state (see ``portable.Memory``) to the values and the
        state after; without a core the state stays as it is."""
        features = self.features(obs)
        if self.core is not None:
            features, state = self.core.step(features, state)
        output: QOutput = self.head(features)
        return output, state

    def features(self, obs: Tensor) -> Tensor:
        """Maps obs <obs_dtype>[B, *input_shape], or what ``scaled`` made of them, to the encoder's features
        <float32>[B, F]."""
        features: Tensor = self.encoder(self.scaled(obs))
        return features

    def scaled(self, obs: Tensor) -> Tensor:
        """Returns obs <obs_dtype>[B, *input_shape] as the encoder is given them: bytes of pictures as floats from 0 to
        1; floats, which observations that were scaled are, too, as they come.

        Until here, on the device, observations keep their dtype. What several networks are given is scaled once, since
        a batch of frames takes milliseconds (docs/performance.md).
        """
        if obs.dtype in (torch.float32, torch.float64):
            return obs
        if obs.shape[1:] == self._picture:  # channels first: convolutions want them last in memory, and bytes are short
            obs = obs.contiguous(memory_format=torch.channels_last)
        x = obs.to(torch.float32)
        return x if self._divisor == 1 else x.div_(self._divisor)


def decayed(module: nn.Module) -> Tensor:
    """Returns 1 for each of the module's weights and 0 for biases and for norms <float32>[P], in the order of
    ``flatten_parameters``: what weight decay is for."""
    return torch.cat([torch.full_like(p.detach().reshape(-1), float(p.dim() > 1)) for p in module.parameters()])


def arrange_weights(module: nn.Module) -> None:
    """Rearranges weights in memory, in place; their shapes and names stay.

    Linear layers' [out, in] get the order [in, out], by which MKL multiplies few rows up to five times as fast, and
    convolutions' the channels last, as pictures have them (docs/performance.md).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.t().contiguous().t()
        elif isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


def flatten_parameters(module: nn.Module) -> Tensor:
    """Moves the module's parameters into one vector, of which they become views, and returns it as one parameter.

    Its ``.grad`` holds every parameter's gradient, so that clipping, Adam, target copies and publishing are each one
    operation instead of one per layer (measured in docs/performance.md). Parameters keep their strides: the vector's
    order is that of memory. ``in_shape_order`` has the other.
    """
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.data = parameter.data.clone()  # dense, also where it is a part of another tensor
    vector = nn.Parameter(torch.cat([_flat(parameter.detach()) for parameter in parameters]))
    vector.grad = torch.zeros_like(vector)
    for parameter, values, gradient in zip(
        parameters, _views(vector.data, parameters), _views(vector.grad, parameters), strict=True
    ):
        parameter.data, parameter.grad = values, gradient
    return vector


def in_shape_order(vector: Tensor, module: nn.Module) -> Tensor:
    """Returns a copy of a vector <float32>[P] in the order of ``flatten_parameters`` with each parameter's values in
    the order of its shape [out, in, ...], however it lies in memory: what files hold."""
    return torch.cat([view.reshape(-1) for view in _views(vector, list(module.parameters()))])


def set_in_shape_order(vector: Tensor, module: nn.Module, values: Tensor) -> None:
    """Sets a vector <float32>[P] in the order of ``flatten_parameters`` to what ``in_shape_order`` returned."""
    views = _views(vector, list(module.parameters()))
    for view, part in zip(views, torch.split(values, [view.numel() for view in views]), strict=True):
        view.copy_(part.view(view.shape))


def _flat(parameter: Tensor) -> Tensor:
    """Returns a dense tensor's values <float32>[N] in the order of its memory."""
    return parameter.as_strided((parameter.numel(),), (1,))


def _views(vector: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Returns a view of each parameter's part of the vector, with its shape and strides."""
    views, offset = [], vector.storage_offset()
    for parameter in parameters:
        views.append(vector.as_strided(parameter.shape, parameter.stride(), offset))
        offset += parameter.numel()
    return views
