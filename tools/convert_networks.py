"""Write the ONNX files of other frameworks that the tests load: small networks with random weights.

Usage: python tools/convert_networks.py keras|jax|sklearn FILE.onnx

It needs packages that are none of graphprune's: tensorflow-cpu and tf2onnx, jax and jax2onnx, or scikit-learn and
skl2onnx.
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


def jax() -> Any:
    """A network of linear layers with a residual sum, by jax2onnx; the batch is dynamic."""
    library = import_module("jax")
    nn, draw = library.nn, np.random.default_rng(0)
    sizes = {"stem": (6, 32), "up": (32, 24), "down": (24, 32), "head": (32, 4)}
    weights = {
        name: tuple(library.numpy.asarray(0.3 * draw.standard_normal(shape), "float32") for shape in (size, size[1:]))
        for name, size in sizes.items()
    }

    def layer(name: str, x: Any) -> Any:
        matrix, bias = weights[name]
        return x @ matrix + bias

    def network(x: Any) -> Any:
        h = nn.relu(layer("stem", x))
        return nn.softmax(layer("head", h + layer("down", nn.gelu(layer("up", h)))))

    return import_module("jax2onnx").to_onnx(network, [("B", 6)], model_name="mlp")


def sklearn() -> Any:
    """A classifier of scaled features with two hidden layers, trained, by skl2onnx: labels and probabilities."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((400, 6)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(int) + (x[:, 2] > 0)
    classifier = import_module("sklearn.neural_network").MLPClassifier((24, 16), max_iter=60, random_state=0)
    scaler = import_module("sklearn.preprocessing").StandardScaler()
    model = import_module("sklearn.pipeline").make_pipeline(scaler, classifier).fit(x, y)
    return import_module("skl2onnx").to_onnx(model, x[:1], options={"zipmap": False})


if __name__ == "__main__":
    name, file = sys.argv[1:]
    Path(file).write_bytes({"keras": keras, "jax": jax, "sklearn": sklearn}[name]().SerializeToString())
