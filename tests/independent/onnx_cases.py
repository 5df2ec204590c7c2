"""The ONNX project's node test cases, as the installed package `onnx` makes them.

A node case is one node of a graph with its inputs and the outputs that ONNX expects. Many operators are tested twice
with the same numbers: as themselves, and "expanded" into the nodes of which ONNX defines them; the second kind is left
out here, as it asks nothing else of xpnn.
"""

import warnings

import numpy as np


class UnclaimedError(Exception):
    """A case asks for something that xpnn does not do; the message says for what."""


class NodeCase:
    """One node, with its inputs and expected outputs.

    It notes which inputs and attributes were asked for: what a mapping does not know must not be left out quietly.
    """

    def __init__(self, name, node, inputs, outputs, output_names):
        from onnx.helper import get_attribute_value

        self.name = name
        self.op_type = node.op_type
        self._attributes = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
        given = iter(inputs)
        self._inputs = [np.asarray(next(given)) if used else None for used in node.input]
        expected = iter(outputs)
        # by formal name; repeated names (of Adam, say, for several tensors) by position
        self.expected = {
            output_names[position]: np.asarray(next(expected)) for position, used in enumerate(node.output) if used
        }
        self._read = set()

    def input(self, position):
        """The input at that position as a NumPy array, or None."""
        self._read.add(position)
        return self._inputs[position] if position < len(self._inputs) else None

    @property
    def inputs(self):
        """All inputs."""
        return [self.input(position) for position in range(len(self._inputs))]

    @property
    def dtype_names(self):
        """The names of the inputs' dtypes, the first input's first."""
        return [array.dtype.name for array in self._inputs if array is not None]

    def attribute(self, name, default=None):
        """An attribute; texts as str, lists as tuples."""
        self._read.add(name)
        value = self._attributes.get(name, default)
        if isinstance(value, bytes):
            return value.decode()
        return tuple(value) if isinstance(value, list) else value

    def check_all_was_read(self):
        """Raise UnclaimedError if there is an input or attribute that nobody asked for."""
        inputs = {position for position, array in enumerate(self._inputs) if array is not None}
        unread = [f"input {position}" for position in sorted(inputs - self._read)]
        unread += [f"attribute {name}" for name in sorted(set(self._attributes) - self._read)]
        if unread:
            raise UnclaimedError(f"the mapping does not know {', '.join(unread)}")


def collect(op_types):
    """(the cases of these op types by name, the version of onnx)."""
    state = np.random.get_state()  # onnx seeds NumPy's global generator for each of its cases
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of ONNX's own references divide by 0 on purpose
            import onnx
            from onnx.backend.test.case.node import collect_testcases

            tests = collect_testcases(None)  # one op type alone can be asked for only once in a process
    finally:
        np.random.set_state(state)
    cases = {}
    for test in tests:
        nodes = test.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type in op_types and "_expanded" not in test.name:
            (inputs, outputs), *more = test.data_sets
            assert not more, f"{test.name} has several data sets"
            cases[test.name] = NodeCase(test.name, nodes[0], inputs, outputs, _output_names(onnx, test.model, nodes[0]))
    return cases, onnx.__version__


def _output_names(onnx, model, node):
    """The formal names of the node's outputs, as its operator defines them; "name.1", ... where one is repeated."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    schema = onnx.defs.get_schema(node.op_type, versions[node.domain], node.domain)
    formal = [output.name for output in schema.outputs]
    return [formal[i] if i < len(formal) else f"{formal[-1]}.{i - len(formal) + 1}" for i in range(len(node.output))]
