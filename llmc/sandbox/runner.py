# runner.py - the program that runs in the sandbox and serves one request: a program to run, functions to call, or tests
# to translate.
#
# It is compiled into the programs (Makefile) and started as `python3 -c TEXT PROCESSES MIB`, before there is anything to do,
# so that a request does not wait for a start. sandbox.h describes the messages: each way one line of JSON, with its
# length in bytes before it on the way in, and on the way out followed by the bytes that it announces.
#
# What runs here is not trusted, and neither is this file once a completion's code has run: it may change any of it. It
# has therefore nothing to hide: the values that results are compared with are outside (llmc/reward/code_judge.h).
#
# A start takes as little as it can: without the module site, of which the names exit and quit and Debian's folder of packages
# are added here, and with the C part of the module json alone, whose Python part takes as long as all the rest.
import builtins
import os
import resource
import sys

import _json
import _sitebuiltins

KEEP = 1 << 20  # bytes of output, of errors and of a value that are kept


class Numbers:
    """How _json reads: the defaults of json.loads()."""

    strict, object_hook, object_pairs_hook, parse_float, parse_int = True, None, None, float, int
    parse_constant = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": -float("inf")}.__getitem__


scan = _json.make_scanner(Numbers)


def refuse(x):
    raise TypeError(type(x).__name__)


def loads(text):
    """json.loads()"""
    text = text.strip(" \t\n\r")
    try:
        value, end = scan(text, 0)
    except StopIteration:
        end = -1
    if end != len(text):
        raise ValueError("no JSON")
    return value


def dumps(value):
    """json.dumps() in ASCII without spaces."""
    write = _json.make_encoder(None, refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, True)
    return "".join(write(value, 0)).encode()


class Odd(Exception):
    """A value of another type than those that plain() writes."""


def plain(x, depth=0):
    """A value as JSON: null, true, false, 1, "text", or ["tag", content]. The types are exact: no subclass, no __eq__. The
    dictionaries of collections are read as what they hold."""
    kind = type(x)
    if depth > 64:
        raise Odd("nested more than 64 times")
    if x is None or kind is bool:
        return x
    if kind is int:
        return x if -(1 << 63) <= x < 1 << 63 else ["i", hex(x)]
    if kind is float:
        return ["f", x.hex()]
    if kind is str:
        try:
            x.encode()
            return x
        except UnicodeEncodeError:
            return ["u", x.encode("utf-8", "surrogatepass").hex()]
    if kind is bytes:
        return ["y", x.hex()]
    if kind is dict or (issubclass(kind, dict) and kind.__module__ == "collections"):
        return ["d", [[plain(k, depth + 1), plain(v, depth + 1)] for k, v in dict.items(x)]]
    tags = {list: "l", tuple: "t", set: "s", frozenset: "s"}
    if kind in tags:
        return [tags[kind], [plain(v, depth + 1) for v in x]]
    raise Odd(kind.__name__)


class Link:
    """The pipes to the program outside, moved away from the standard streams."""

    def __init__(self):
        self.down, self.up = 62, 63
        for i in (0, 1):
            os.dup2(i, 62 + i, inheritable=False)
        self.held = b""

    def more(self):
        got = os.read(self.down, 1 << 16)
        if not got:
            os._exit(0)
        self.held += got

    def receive(self):
        while b"\n" not in self.held:
            self.more()
        count, _, self.held = self.held.partition(b"\n")
        parts, size = [self.held], len(self.held)
        while size < int(count):
            self.held = b""
            self.more()
            parts.append(self.held)
            size += len(self.held)
        text = b"".join(parts)
        self.held = text[int(count):]
        self.check()
        return loads(text[: int(count)].decode())

    def check(self):
        """Ends the process if the program outside, which holds the other end, has ended."""
        import select

        poll = select.poll()
        poll.register(self.down, 0)
        if poll.poll(0):
            os._exit(0)

    def send(self, reply, *blocks):
        if blocks:
            reply["bytes"] = [len(b) for b in blocks]
        text = dumps(reply) + b"\n" + b"".join(blocks)
        at = 0
        while at < len(text):
            at += os.write(self.up, text[at:])


def limit(what, value, more=0):
    """Lowers a limit, and the hard limit to `more` above it; a hard limit that is lower already stays."""
    hard = resource.getrlimit(what)[1]
    if hard == resource.RLIM_INFINITY or value + more < hard:
        hard = value + more
    resource.setrlimit(what, (min(value, hard), hard))


def failure(error):
    """The outcome and the text of an exception."""
    kind = "memory" if isinstance(error, MemoryError) else "error"
    return {"outcome": kind, "text": (type(error).__name__ + ": " + str(error))[:400]}


# ---- programs: standard input to standard output -------------------------------------------------------------------


def write_files(files):
    for name, text in files.items():
        folder = os.path.dirname(name)
        if folder:
            os.makedirs(folder, exist_ok=True)
        with open(name, "w", encoding="utf-8", newline="") as f:
            f.write(text)


def spawn(run, data):
    """Runs a function in a child that reads `data`. Returns its status, its output and its errors."""
    import select

    with open(".input", "w+b", buffering=0) as source:
        os.unlink(".input")
        while data:
            data = data[source.write(data):]
        source.seek(0)
        out, err = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            for i, file in enumerate((source.fileno(), out[1], err[1])):
                os.dup2(file, i)
            os.closerange(3, 64)
            run()
            os._exit(0)
    os.close(out[1])
    os.close(err[1])
    end, poll, kept = os.pidfd_open(pid), select.poll(), {out[0]: b"", err[0]: b""}
    for file in (end, out[0], err[0]):
        poll.register(file, select.POLLIN)
    ended = False
    while not ended:
        for file, _ in poll.poll():
            if file == end:
                ended = True
                continue
            got = os.read(file, 1 << 16)
            kept[file] += got
            if not got:
                poll.unregister(file)
            if len(kept[file]) > KEEP:
                return None, kept[out[0]][:KEEP], kept[err[0]][:KEEP]
    for file in kept:  # what the program wrote before it ended
        os.set_blocking(file, False)
        while len(kept[file]) <= KEEP:
            try:
                got = os.read(file, 1 << 16)
            except BlockingIOError:
                break
            if not got:
                break
            kept[file] += got
        os.close(file)
    os.close(end)
    over = max(len(b) for b in kept.values()) > KEEP
    status = os.waitpid(pid, 0)[1]
    return None if over else status, kept[out[0]][:KEEP], kept[err[0]][:KEEP]


def python_program(source):
    """A function that runs the source as the main program, in the child of spawn()."""
    code = compile(source, "main.py", "exec")

    def run():
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        sys.argv = ["main.py"]
        sys.stdin = open(0, encoding="utf-8", errors="replace")
        sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape")
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
        status = 0
        try:
            exec(code, main.__dict__)
        except SystemExit as e:
            status = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
            if status and not isinstance(e.code, int):
                print(e.code, file=sys.stderr)
        except BaseException as e:
            import traceback

            status = 1
            traceback.print_exception(type(e), e, e.__traceback__.tb_next)
        try:
            import atexit
            import threading

            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status & 255)

    return run


def command_program(*command):
    def run():
        os.execvp(command[0], command)

    return run


def run_program(link, request):
    language = request["language"]
    write_files(request.get("files", {}))
    if language == "python":
        try:
            run = python_program(request["source"])
        except (SyntaxError, ValueError) as e:
            import traceback

            text = "".join(traceback.format_exception_only(type(e), e))
            return link.send({"outcome": "compile", "text": str(e)[:400]}, b"", text.encode("utf-8", "replace"))
        except (MemoryError, RecursionError) as e:
            return link.send({"outcome": "compile", "text": type(e).__name__}, b"", type(e).__name__.encode())
    elif language == "c":
        write_files({"main.c": request["source"]})
        gcc = ("gcc", "-std=c11", "-O1", "-Wall", "-D_GNU_SOURCE", "-pipe", "main.c", "-o", "main", "-lm")

        def build():
            limit(resource.RLIMIT_AS, 512 << 20)
            limit(resource.RLIMIT_CPU, 10, 1)
            os.execvp(gcc[0], gcc)

        status, out, err = spawn(build, b"")
        if status != 0:
            return link.send({"outcome": "compile", "text": "gcc ended with status %s" % status}, out, err)
        with open("main", "rb") as f:
            os.fchmod(f.fileno(), 0o700)
        run = command_program("./main")
    else:
        run = command_program("sh", "-c", request["run"])
    link.send({"outcome": "ready"})
    while True:
        step = link.receive()
        status, out, err = spawn(run, step["input"].encode("utf-8", "surrogatepass"))
        if status is None:
            link.send({"outcome": "output_limit"}, out, err)
        elif os.WIFSIGNALED(status):
            link.send({"signal": os.WTERMSIG(status)}, out, err)
        else:
            link.send({"status": os.WEXITSTATUS(status)}, out, err)


# ---- functions: calls with values ----------------------------------------------------------------------------------


def find(space, name):
    if name in space:
        return space[name]
    if "Solution" in space and hasattr(space["Solution"], name):
        return getattr(space["Solution"](), name)
    raise NameError("name '%s' is not defined" % name)


def run_step(space, step):
    """One test: a call, an expression, or asserts that end in a secret that was unknown to the completion's code."""
    if "call" in step:
        return {"value": plain(find(space, step["call"])(*[loads(a) for a in step["args"]]))}
    if "eval" in step:
        return {"value": plain(eval(compile(step["eval"], "test", "eval"), space))}
    import ast

    count = 0

    def asserted():
        nonlocal count
        count += 1

    class Counting(ast.NodeTransformer):
        def visit_Assert(self, node):
            after = ast.Expr(ast.Call(ast.Name("__asserted__", ast.Load()), [], []))
            return [node, ast.fix_missing_locations(ast.copy_location(after, node))]

    space["__asserted__"] = asserted
    exec(compile(Counting().visit(ast.parse(step["check"])), "test", "exec"), space)
    return {"secret": step["secret"], "asserts": count}


def run_calls(link, request):
    module = type(sys)("solution")
    sys.modules["solution"] = module
    space = module.__dict__
    try:
        if request.get("setup"):
            exec(compile(request["setup"], "setup", "exec"), space)
        exec(compile(request["source"], "solution.py", "exec"), space)
        if request.get("after"):
            exec(compile(request["after"], "setup", "exec"), space)
        ready = {"outcome": "ready"}
    except (SyntaxError, ValueError) as e:
        inside = not isinstance(e, SyntaxError) or e.filename != "solution.py"
        ready = failure(e) if inside else {"outcome": "compile", "text": str(e)[:400]}
    except BaseException as e:
        ready = failure(e)
    link.send(ready)
    while ready["outcome"] == "ready":
        step = link.receive()
        try:
            reply = run_step(space, step)
        except AssertionError as e:
            reply = {"outcome": "wrong", "text": str(e)[:400]}
        except Odd as e:
            reply = {"outcome": "wrong", "text": "a value of type " + str(e)[:100]}
        except BaseException as e:
            reply = failure(e)
        link.send(reply)


# ---- tests: asserts as calls with expected values ------------------------------------------------------------------

PURE = "set tuple list dict frozenset sorted float int str bytes range abs round sum min max len bool complex reversed"


def constant(node):
    """Whether an expression has only literals and calls of plain types."""
    import ast

    names = set(PURE.split())
    for n in ast.walk(node):
        if isinstance(n, ast.Name) and n.id not in names:
            return False
        if isinstance(n, (ast.Attribute, ast.Lambda, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)):
            return False
        if isinstance(n, ast.Call) and not isinstance(n.func, ast.Name):
            return False
        if isinstance(n, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.JoinedStr)):
            return False
    return True


def value_of(node):
    import ast

    text = ast.Expression(node)
    return eval(compile(ast.fix_missing_locations(text), "expected", "eval"), {})


def uses(node):
    """Whether an expression calls something that is not constant, so that its value comes from the completion's code."""
    import ast

    return any(isinstance(n, ast.Call) for n in ast.walk(node)) and not constant(node)


def asks(node):
    """Whether an expression is a call of the completion's own function: all(f(i) == i for i in x) would hold the answer."""
    import ast

    names = set(dir(__builtins__) if not isinstance(__builtins__, dict) else __builtins__)
    if not isinstance(node, ast.Call) or (isinstance(node.func, ast.Name) and node.func.id in names):
        return False
    return not any(isinstance(n, (ast.Compare, ast.Lambda)) for n in ast.walk(node))


def truth(node):
    """An expression that is True or False: an object of any type can be true, such as a match of a regular expression."""
    import ast

    return "not not " + ast.unparse(node)


def number_of(node):
    if not constant(node):
        return None
    x = value_of(node)
    return float(x) if type(x) in (int, float) else None


def near(node):
    """abs(a - b) < eps or math.isclose(a, b, ...): a test of a value within a tolerance."""
    import ast

    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], (ast.Lt, ast.LtE)):
        left, eps = node.left, number_of(node.comparators[0])
        if (eps is None or not isinstance(left, ast.Call) or getattr(left.func, "id", "") not in ("abs", "fabs")
                or len(left.args) != 1 or not isinstance(left.args[0], ast.BinOp)
                or not isinstance(left.args[0].op, ast.Sub)):
            return None
        pair = (left.args[0].left, left.args[0].right)
        how = {"op": "lt" if isinstance(node.ops[0], ast.Lt) else "le", "abs": float(eps).hex(), "rel": "0x0p+0"}
    elif isinstance(node, ast.Call) and (getattr(node.func, "attr", "") or getattr(node.func, "id", "")) == "isclose":
        if len(node.args) < 2:
            return None
        pair, how = node.args[:2], {"op": "close", "rel": (1e-9).hex(), "abs": "0x0p+0"}
        names = ["rel_tol", "abs_tol"]
        if len(node.args) > 2:
            return None
        for word in node.keywords:
            x = number_of(word.value)
            if word.arg not in names or x is None:
                return None
            how[word.arg[:3]] = x.hex()
    else:
        return None
    for a, b in (pair, pair[::-1]):
        x = number_of(b)
        if x is not None and uses(a):
            return {"eval": ast.unparse(a), "value": plain(value_of(b)), **how}
    return None


def translate_test(node):
    """Tests for the expression of an assert, or None if its expected value cannot stay outside."""
    import ast

    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        parts = [translate_test(v) for v in node.values]
        return None if None in parts else [t for p in parts for t in p]
    if constant(node):
        return [] if value_of(node) else None
    found = near(node)
    if found:
        return [found]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return [{"eval": truth(node.operand), "op": "false", "value": None}] if asks(node.operand) else None
    if isinstance(node, ast.Call):
        return [{"eval": truth(node), "op": "true", "value": None}] if asks(node) else None
    names = {ast.Eq: "eq", ast.NotEq: "ne", ast.Is: "is", ast.IsNot: "is_not", ast.In: "in"}
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in names:
        left, right, op = node.left, node.comparators[0], names[type(node.ops[0])]
        if constant(left) and op != "in":
            left, right = right, left
        if constant(right) and uses(left):
            value = value_of(right)
            if op == "in" and type(value) not in (list, tuple, set, frozenset):
                return None
            if op in ("is", "is_not") and value is not None and type(value) is not bool:
                return None
            return [{"eval": ast.unparse(left), "op": op, "value": plain(value)}]
    return None


def defined(body):
    """The names that statements define: variables, functions, classes, modules."""
    import ast

    names = set()
    for node in (n for statement in body for n in ast.walk(statement)):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names


def translate_asserts(body, own=()):
    """Tests for a list of statements: those of asserts with an expected value, and the other statements. own: names that
    only the tests define, of which an expression that the completion's code evaluates may use none."""
    import ast

    tests, rest, own = [], [], defined(body) | set(own)
    for statement in body:
        made = None
        if isinstance(statement, ast.Assert):
            try:
                made = translate_test(statement.test)
            except Exception:
                made = None
        for test in made or []:
            if own & {n.id for n in ast.walk(ast.parse(test["eval"])) if isinstance(n, ast.Name)}:
                made = None
        if made is None:
            rest.append(statement)
        else:
            tests += made
    return tests, rest


def translate(request):
    """The tests of a row. An assert that cannot become a call with an expected value stays an assert, a weak test."""
    import ast

    tests = []
    for text in request.get("tests", []):
        made, rest = translate_asserts(ast.parse(text).body)
        tests += made
        if rest:
            tests.append({"check": ast.unparse(ast.Module(rest, []))})
    if "test" in request:
        entry, body = request["entry_point"], ast.parse(request["test"]).body
        checks = [s for s in body if isinstance(s, ast.FunctionDef) and s.name == "check" and s.args.args]
        rest = [s for s in body if s not in checks]
        others = defined(rest)
        for statement in checks:
            name = statement.args.args[0].arg

            class Rename(ast.NodeTransformer):
                def visit_Name(self, node):
                    return ast.copy_location(ast.Name(entry, node.ctx), node) if node.id == name else node

            made, left = translate_asserts([Rename().visit(s) for s in statement.body], others)
            tests += made
            if any(isinstance(n, ast.Assert) for s in left for n in ast.walk(s)):
                check = ast.FunctionDef("check", statement.args, left, [], lineno=1)
                text = ast.unparse(ast.fix_missing_locations(ast.Module([check], [])))
                tests.append({"check": ast.unparse(ast.Module(rest, [])) + "\n" + text + "\ncheck(%s)" % entry})
            elif left and not made:
                raise ValueError("the function check has no assert")
    return tests


def run_translations(link, request):
    link.send({"outcome": "ready"})
    while True:
        step = link.receive()
        try:
            reply = {"tests": translate(step)}
        except BaseException as e:
            reply = {"outcome": "error", "text": (type(e).__name__ + ": " + str(e))[:400]}
        link.send(reply)


# ---- the self-test -------------------------------------------------------------------------------------------------


def probe(link, request):
    """Tries what a sandbox must refuse, and names what succeeded."""
    import ctypes
    import socket

    libc, got = ctypes.CDLL(None, use_errno=True), []

    def attempt(name, action):
        try:
            action()
            got.append(name)
        except (OSError, MemoryError):
            pass

    def unshare():
        if libc.unshare(0x10000000):
            raise OSError

    def write(folder):
        path = os.path.join(folder, ".llmc-sandbox-%d" % os.getpid())
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(path)

    if request["closed"]:
        attempt("a socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close())
        attempt("a user namespace", unshare)
    attempt("a connection", lambda: socket.create_connection(("127.0.0.1", request["port"]), 1).close())
    if not request["shown"]:
        attempt("reading the run's folder", lambda: os.listdir(request["folder"]))
    for folder in (request["folder"], "/", "/usr", "/etc", "/var/tmp", "/dev", "/dev/shm"):
        attempt("writing to " + folder, lambda: write(folder))
    attempt("2 GiB of memory", lambda: bytearray(2 << 30))
    link.send({"got": got})


def main():
    builtins.exit, builtins.quit = (_sitebuiltins.Quitter(name, "end of input") for name in ("exit", "quit"))
    for folder in ("/usr/local/lib/python%d.%d/dist-packages" % sys.version_info[:2], "/usr/lib/python3/dist-packages"):
        if os.path.isdir(folder):
            sys.path.append(folder)
    link = Link()
    null = os.open("/dev/null", os.O_RDWR)
    limit(resource.RLIMIT_NPROC, int(sys.argv[1]))
    limit(resource.RLIMIT_AS, int(sys.argv[2]) << 20)
    link.send({"outcome": "waiting"})
    request = link.receive()
    for i in range(3):
        os.dup2(null, i)
    os.close(null)
    limit(resource.RLIMIT_CPU, int(request["seconds"]) + 1, 1)
    modes = {"program": run_program, "calls": run_calls, "translate": run_translations, "probe": probe}
    modes[request["mode"]](link, request)


main()
