"""Every error that graphprune raises on purpose: what, where, got, expected, what to do."""


class GraphpruneError(Exception):
    """The root: one clear message, meant for the user."""


class TraceError(GraphpruneError):
    """A module could not be captured as a graph."""


class LoadError(GraphpruneError):
    """A model, a plan or a text could not be read."""


class AnalysisError(GraphpruneError):
    """The inferred axes contradict each other: a rule is wrong."""


class PlanError(GraphpruneError):
    """A plan cannot be made, or does not fit the program."""


class InvalidProgram(GraphpruneError):  # noqa: N818 - the name of the state, as in compilers
    """A rewritten graph does not hold together."""


class CalibrationError(GraphpruneError):
    """The calibration data or what the model makes of it is unusable."""


class VerificationError(GraphpruneError):
    """Two models that must agree do not."""


class WriteBackError(GraphpruneError):
    """A plan cannot be expressed in the original module."""


class ExportError(GraphpruneError):
    """A model could not be saved or exported."""


class WorkspaceError(GraphpruneError):
    """What a run keeps while it works cannot be written, or belongs to another run."""


class PipelineError(GraphpruneError):
    """Passes stand in an order in which they cannot run, or their text cannot be read."""


class PackageError(GraphpruneError):
    """An optional package is missing, or fails while it is imported."""


class RegistryError(GraphpruneError):
    """A name is not registered, or registered twice."""


def first_line(fault: BaseException) -> str:
    """The first line of an error's text; its kind where it has none."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0] if lines else type(fault).__name__
