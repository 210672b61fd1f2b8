"""GRU and LSTM step by step, by their equations, with the weights of torch's layers."""
import numpy as np
from torch import nn


def weights(layer: nn.RNNBase, suffix: str) -> list[np.ndarray]:
    return [getattr(layer, f"{name}_{suffix}").detach().double().numpy() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def gru_states(layer: nn.GRU, x: np.ndarray, suffix: str = "l0") -> np.ndarray:
    """Every state ``[n, l, h]`` of one layer; one whose suffix ends in ``_reverse`` begins at the end of x."""
    if suffix.endswith("_reverse"):
        return gru_loop(weights(layer, suffix), x[:, ::-1])[:, ::-1]
    return gru_loop(weights(layer, suffix), x)


def gru_loop(parts, x):
    w, u, b, c = parts
    k, state, states = u.shape[1], np.zeros((len(x), u.shape[1])), []
    for step in range(x.shape[1]):
        given, kept = x[:, step] @ w.T + b, state @ u.T + c
        reset, update = (sigmoid(given[:, p:p + k] + kept[:, p:p + k]) for p in (0, k))
        state = (1 - update) * np.tanh(given[:, 2 * k:] + reset * kept[:, 2 * k:]) + update * state
        states.append(state)
    return np.stack(states, axis=1)


def lstm_states(layer: nn.LSTM, x: np.ndarray, suffix: str = "l0") -> np.ndarray:
    """Every state ``[n, l, h]`` of one layer."""
    w, u, b, c = weights(layer, suffix)
    k = u.shape[1]
    state, cell, states = np.zeros((len(x), k)), np.zeros((len(x), k)), []
    for step in range(x.shape[1]):
        total = x[:, step] @ w.T + b + state @ u.T + c
        enter, forget, content, leave = (total[:, p * k:(p + 1) * k] for p in range(4))
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(content)
        state = sigmoid(leave) * np.tanh(cell)
        states.append(state)
    return np.stack(states, axis=1)


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    bias = 0 if layer.bias is None else layer.bias.detach().double().numpy()
    return x @ layer.weight.detach().double().numpy().T + bias


def elu(v):
    return np.where(v > 0, v, np.expm1(v))


def layer_norm(layer: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + layer.eps)
    return normed * layer.weight.detach().double().numpy() + layer.bias.detach().double().numpy()


def softmax(v: np.ndarray) -> np.ndarray:
    raised = np.exp(v - v.max())
    return raised / raised.sum()
