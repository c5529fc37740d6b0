"""Pickles with code in them: names of what runs code, deletes files or opens sockets, in every way to call them."""

from __future__ import annotations

NAMES = [
    *("os.system", "posix.system", "nt.system", "os.popen", "os.execv", "os.remove", "subprocess.Popen"),
    *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__", "builtins.getattr"),
    *("builtins.open", "builtins.setattr", "builtins.globals", "builtins.breakpoint", "builtins.input"),
    *("__builtin__.eval", "__builtin__.file", "__builtin__.apply", "builtins.map", "builtins.type"),
    *("importlib.import_module", "runpy.run_path", "code.interact", "pty.spawn", "shutil.rmtree"),
    *("functools.partial", "functools.reduce", "operator.attrgetter", "operator.methodcaller"),
    *("torch.hub.load", "torch.load", "torch.save", "torch.jit.load", "torch.package.PackageImporter"),
    *("torch.utils.cpp_extension.load_inline", "torch._C._nn.gelu", "torch.serialization.load"),
    *("torch.storage._load_from_bytes", "torch._utils._rebuild_device_tensor_from_numpy"),
    *("torch._utils._rebuild_wrapper_subclass", "torch._tensor._rebuild_from_type", "torch.compile"),
    *(
        "numpy.load",
        "numpy.f2py.compile",
        "numpy.testing._private.utils.runstring",
        "numpy.core.records.fromfile",
    ),
    *(
        "types.CodeType",
        "types.FunctionType",
        "marshal.loads",
        "ctypes.CDLL",
        "pickle.loads",
        "_pickle.loads",
    ),
    *(
        "timeit.timeit",
        "bdb.Bdb",
        "pdb.run",
        "cProfile.run",
        "trace.Trace",
        "webbrowser.open",
        "socket.socket",
    ),
    *("collections.namedtuple", "logging.config.listen", "site.execsitecustomize", "ensurepip._run_pip"),
    *(
        "pip.main",
        "idlelib.pyshell.ModifiedInterpreter",
        "asyncio.create_subprocess_shell",
        "ssl.get_server_certificate",
    ),
    *("joblib.load", "dill.loads", "cloudpickle.loads", "pandas.read_pickle", "yaml.unsafe_load", "sys.exit"),
    *(
        "transformers.pipeline",
        "jitney.runtime.model.program.Program",
        "megatronx.evil",
        "Megatron.core.x",
        ".",
    ),
]


def calls(path: str) -> dict[str, bytes]:
    """A call of `path` with one text, in every way that a pickle can write it."""
    module, _, name = path.rpartition(".")
    text, args = b"X\x05\0\0\0touch", b"(X\x05\0\0\0toucht"
    by_line = b"c" + module.encode() + b"\n" + name.encode() + b"\n"
    short = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)]
    by_stack = short[0] + short[1] + b"\x93"
    by_memo = short[0] + b"\x94" + short[1] + b"\x94" + b"00h\x00h\x01\x93"
    return {
        "reduce": b"\x80\x02" + by_line + args + b"R.",
        "stacked": b"\x80\x04" + by_stack + args + b"R.",
        "memoised": b"\x80\x04" + by_memo + args + b"R.",
        "new": b"\x80\x02" + by_line + args + b"\x81.",
        "new by keyword": b"\x80\x04" + by_stack + args + b"}\x92.",
        "nested": b"\x80\x02cargparse\nNamespace\n(" + by_line + args + b"RtR.",
        "as state": b"\x80\x02cargparse\nNamespace\n)R" + by_line + args + b"Rb.",
        "as setstate": b"\x80\x02cargparse\nNamespace\n)R}X\x0c\0\0\0__setstate__" + by_line + b"sb.",
        "as class": b"\x80\x02cargparse\nNamespace\n)R}X\x09\0\0\0__class__" + by_line + b"sb.",
        "as key": b"\x80\x02}" + by_line + args + b"RK\x01s.",
        "mentioned": b"\x80\x02" + by_line + b".",
        "dropped": b"\x80\x02" + by_line + args + b"R0N.",
        "instance": b"\x80\x02(" + text + b"i" + module.encode() + b"\n" + name.encode() + b"\n.",
        "object": b"\x80\x02(" + by_line + text + b"o.",
        "after stop": b"\x80\x02]" + by_line + args + b"Ra.",
    }
