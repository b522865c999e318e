"""``pytest`` without a path runs the whole suite on all cores; with a path, or with ``--pdb``, in one process."""

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the options
def pytest_cmdline_main(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):  # or in a worker of xdist
        return
    option = config.option
    whole_suite = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    if whole_suite and option.numprocesses is None and not (option.usepdb or option.trace):
        option.numprocesses = "auto"
    # A file stays in one process, because its tests share what took long to make. tests/conftest.py sorts the files.
    if option.numprocesses and option.dist == "no":
        option.dist, option.loadscopereorder = "loadfile", False
