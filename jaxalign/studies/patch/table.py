from jaxalign.studies.patch.result import PatchResult


def table(result: PatchResult) -> str:
    return "x"


def details(result: PatchResult) -> str:
    return ""
