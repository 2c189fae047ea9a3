"""Write the ONNX files of other frameworks that the tests load: small networks with random weights.

Usage: python tools/convert_networks.py keras FILE.onnx

It needs the packages tensorflow-cpu and tf2onnx, which are none of graphprune's.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def keras() -> Any:
    """A network of convolutions, one of them depthwise, with a norm, a sum and linear layers, by tf2onnx."""
    tf, own = import_module("tensorflow"), import_module("keras")
    layers = own.layers
    image = own.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Add()([x, layers.Conv2D(8, 1, name="pointwise")(y)])
    x = layers.Flatten()(layers.MaxPooling2D(2)(layers.Conv2D(12, 3, activation="relu", name="deep")(x)))
    x = layers.Dense(16, activation="silu", name="wide")(x)
    model = own.Model(image, layers.Dense(5, activation="softmax", name="classes")(x))
    draw = np.random.default_rng(0)
    for weight in model.weights:
        noise = 0.2 * draw.standard_normal(weight.shape)
        weight.assign(weight.numpy() + (np.abs(noise) if "variance" in weight.path else noise))
    signature = [tf.TensorSpec((None, 12, 12, 3), tf.float32, name="image")]
    function = tf.function(lambda image: {"classes": model(image)}, input_signature=signature)
    return import_module("tf2onnx").convert.from_function(function, input_signature=signature, opset=17)[0]


if __name__ == "__main__":
    name, file = sys.argv[1:]
    Path(file).write_bytes({"keras": keras}[name]().SerializeToString())
