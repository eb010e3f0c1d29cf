# includes.awk - which names of which header each file uses; the work of includes.sh, which describes it.
#
# Splits all files into tokens without comments and strings, and collects the names that each defines (functions,
# macros, types, enumerators, variables) and uses. A name that follows `.` or `->` is a member and no use. The name of a
# function is a use before `(`, or where the file declares no variable of that name. A name that a macro makes,
# TENSOR_##name, is defined by the header whose enum applies the macro. A macro without a body, XXH_INLINE_ALL,
# configures a header of the system: names that begin with XXH and that no file defines come from the header that
# defines the macro, unless enumerators of the project begin so, too.
#
# check=1: prints each annotation that names what the header does not define or the file does not use. Otherwise writes
# each target, with its includes rewritten, to out/PATH.

function directory(path) { return match(path, /^.*\//) ? substr(path, 1, RLENGTH) : "" }
function resolve(from, name,    path) {
    path = directory(from) name
    while (sub(/[a-z_0-9]+\/\.\.\//, "", path)) continue
    return path
}
function included(line) {
    match(line, /"[^"]+"/)
    return substr(line, RSTART + 1, RLENGTH - 2)
}
function relative(from, to,    a, b) {
    a = directory(from)
    b = directory(to)
    to = substr(to, length(b) + 1)
    while (a != "" && b != "" && substr(a, 1, index(a, "/")) == substr(b, 1, index(b, "/"))) {
        a = substr(a, index(a, "/") + 1)
        b = substr(b, index(b, "/") + 1)
    }
    gsub(/[^\/]+\//, "../", a)
    return a b to
}
function is_name(t) { return t ~ /^[A-Za-z_]/ }

# ---- what a file defines -----------------------------------------------------------------------------------------

function define(name, kind, weak) {
    if (name == "" || name ~ /^(struct|union|enum|const|static|void|int|char|float|double|bool)$/) return
    if (!((file, name) in defines)) providers[name] = providers[name] " " file
    if (!((file, name) in defines) || !weak) defines[file, name] = kind (weak ? "weak" : "")
}
function prefix_owner(macro,    i, p, n) {
    n = split(pastes[file, macro], p, " ")
    for (i = 1; i <= n; i++) if (!(p[i] in owner)) owner[p[i]] = file
}
# The statement s[1..n] at depth 0 ends with `;`, or with `{` (body = 1).
function statement(body,    i, end, parens, name, call, typedef) {
    typedef = s[1] == "typedef"
    if (!n || s[1] ~ /^(_Static_assert|static_assert|using|namespace)$/) return
    for (i = 1; i < n && s[i] != "("; i++) if (s[i] ~ /^(struct|union|enum|class)$/ && is_name(s[i + 1]))
        if (body || s[i + 2] == "{}") define(s[i + 1], "type", 0)
        else if (typedef) define(s[i + 1], "type", 1)
    if (typedef && !body) {
        for (i = 1; i < n; i++) if (s[i] == "(" && s[i + 1] == "*") { define(s[i + 2], "type", 0); return }
        end = n
        for (i = n; i > 2; i--) if (s[i] == "__attribute__") end = i - 1
        for (i = end; i > 1; i--) if (is_name(s[i]) && s[i + 1] != "]") break
        for (name = i; name > 1; name--) if (s[name] == "{}") break
        define(s[i], "type", name == 1 && s[2] ~ /^(struct|union|enum)$/)
        return
    }
    for (i = 1; i <= n && s[i] != "="; i++) {
        if (s[i] == "(" && !parens++ && i > 1 && is_name(s[i - 1]) && s[i - 1] !~ /^__/) call = s[i - 1]
        if (s[i] == ")") parens--
    }
    delete s[n + 1] # of a longer statement before
    if (call != "" && s[i] != "=") define(call, "function", 0)
    else if (!typedef && (!body || s[i] == "="))
        for (i = 2; i <= n + 1; i++)
            if ((i > n || s[i] ~ /^[=,[]$/) && is_name(s[i - 1]) && s[i - 2] !~ /^(struct|union|enum)$/) {
                define(s[i - 1], "variable", 0)
                if (s[i] == "=") return
            }
}

# ---- tokens ------------------------------------------------------------------------------------------------------

function use(t, prev, next_) {
    if (prev == "." || prev == "->") return
    uses[file, t]++
    if (!((file, t) in listed)) { listed[file, t] = 1; used[file] = used[file] " " t }
    if (next_ == "(") called[file, t] = 1
    if (next_ !~ /^[;=,)\[:]$/) return
    if (is_name(prev) && prev !~ /^(return|else|case|goto|sizeof|typename)$/) declared[file, t] = 1
    if (prev == "*" && before ~ TYPE) declared[file, t] = 1
}
# A token of the text outside directives: a use, or a part of a definition at depth 0.
function token(t, next_) {
    if (is_name(t)) use(t, last, next_)
    before = last
    last = t
    if (angles || template) skip_template(t)
    else if (t == "template" && file !~ /\.[ch]$/) template = 1
    else if (depth == 0) outer_token(t)
    else if (t == "{") depth++
    else if (t == "}") {
        if (--depth) return
        if (inside == "function") n = 0
        else s[++n] = "{}"
        inside = ""
    } else if (inside == "enum" && depth == 1) enum_token(t, next_)
}
# The parameters of a template, <...>.
function skip_template(t) {
    template = 0
    if (t == "<") angles++
    if (t == ">") angles--
}
function outer_token(t,    i, equal, paren, is_enum) {
    if (t == "}") { n = 0; return } # of a namespace or of extern "C"
    if (t == ";" && !parens) { statement(0); n = 0; return }
    if (t != "{") {
        if (t == "(") parens++
        if (t == ")") parens--
        s[++n] = t
        return
    }
    if (s[n] == "\"" || s[1] == "namespace") { n = 0; return }
    for (i = 1; i <= n; i++) {
        if (s[i] == "=") equal = 1
        if (s[i] == "(") paren = 1
        if (s[i] == "enum") is_enum = 1
    }
    inside = equal ? "value" : paren && s[1] != "typedef" ? "function" : is_enum ? "enum" : "type"
    statement(1)
    depth = 1
    enum_next = 1
}
function enum_token(t, next_) {
    if (is_name(t) && enum_next && next_ != "(") {
        define(t, "constant", 0)
        enumerated[substr(t, 1, index(t, "_") - 1)] = 1
    }
    if (is_name(t) && (file, t) in pastes) prefix_owner(t)
    if (t == "(") enum_parens++
    if (t == ")") enum_parens--
    enum_next = t == "," && !enum_parens
}

# A directive, complete with its continuations, as tokens d[1..m].
function directive(    i, name) {
    if (d[2] == "define") {
        name = d[3]
        if (name !~ /^LLMC_.*_(H|CUH)$/) define(name, glued ? "function" : "constant", 0)
        if (m == 3 && name ~ /^[A-Z]+_/ && name !~ /_(H|CUH)$/) {
            i = substr(name, 1, index(name, "_") - 1)
            configured[i] = configured[i] " " file
        }
        for (i = 4; i <= m; i++) if (d[i] == "##" && is_name(d[i - 1])) {
            pastes[file, name] = pastes[file, name] " " d[i - 1]
            pasted[file] = pasted[file] " " d[i - 1]
        }
        for (i = 4; i <= m; i++) if (is_name(d[i])) use(d[i], d[i - 1], d[i + 1])
    } else if (d[2] == "undef") {
        undefined[file, d[3]] = 1
    } else if (d[2] ~ /^(if|ifdef|ifndef|elif)$/) for (i = 3; i <= m; i++) if (is_name(d[i])) use(d[i], "", "")
}
# Removes comments, and leaves of a string its first quote.
function strip(line,    r, at) {
    r = ""
    while (line != "") {
        if (in_comment) {
            at = index(line, "*/")
            if (!at) return r
            line = substr(line, at + 2)
            in_comment = 0
            r = r " "
        } else if (match(line, /["']|\/\*|\/\//)) {
            r = r substr(line, 1, RSTART - 1)
            at = substr(line, RSTART, 2)
            line = substr(line, RSTART)
            if (at == "//") return r
            if (at == "/*") { in_comment = 1; line = substr(line, 3) }
            else if (match(line, /^"([^"\\]|\\.)*"/)) { r = r "\""; line = substr(line, RLENGTH + 1) }
            else if (match(line, /^'([^'\\]|\\.)*'/)) { r = r "0"; line = substr(line, RLENGTH + 1) }
            else { r = r " "; line = substr(line, 2) }
        } else return r line
    }
    return r
}
function scan(line) {
    while (match(line, /[A-Za-z_][A-Za-z_0-9]*|->|##|[0-9][A-Za-z_0-9.]*|[^ \tA-Za-z_0-9]/)) {
        queue[++queued] = substr(line, RSTART, RLENGTH)
        line = substr(line, RSTART + RLENGTH)
    }
}
function flush(    i) {
    for (i = 1; i <= queued; i++) token(queue[i], queue[i + 1])
    for (i = 0; i <= queued + 2; i++) delete queue[i]
    queued = 0
}
function file_end() {
    if (file == "") return
    flush()
    if (depth) print file ": braces do not balance in what includes.awk reads" > "/dev/stderr"
}

BEGIN { TYPE = "^([A-Z][A-Za-z]*[a-z][A-Za-z]*|int|char|float|double|void|const|bool|[a-z0-9_]+_t)$" }
FNR == 1 {
    file_end()
    file = FILENAME
    order[++files] = file
    depth = n = in_comment = parens = enum_parens = angles = template = continued = 0
    last = before = inside = ""
}
FILENAME == "llmc/README.md" {
    if (split($0, cell, "|") > 4 && match(cell[2], /`[a-z]+\/`/)) {
        folder = substr(cell[2], RSTART + 1, RLENGTH - 3)
        gsub(/[`,\/]/, " ", cell[4])
        may[folder] = " " folder " " cell[4] " "
    }
    next
}
{
    if (!in_comment && /^ *# *include "/) {
        includes[file] = includes[file] " " resolve(file, included($0))
    }
    code = strip($0)
    if (continued || code ~ /^[ \t]*#/) {
        if (!continued) {
            text = ""
            glued = code ~ /^[ \t]*#[ \t]*define[ \t]+[A-Za-z_0-9]+\(/
        }
        continued = code ~ /\\[ \t]*$/
        sub(/\\[ \t]*$/, " ", code)
        text = text code
        if (!continued) {
            flush()
            m = 0
            while (match(text, /[A-Za-z_][A-Za-z_0-9]*|->|##|[0-9][A-Za-z_0-9.]*|[^ \tA-Za-z_0-9]/)) {
                d[++m] = substr(text, RSTART, RLENGTH)
                text = substr(text, RSTART + RLENGTH)
            }
            d[m + 1] = ""
            directive()
        }
        next
    }
    scan(code)
}

# ---- which header provides a name --------------------------------------------------------------------------------

function close_over(from, at,    i, k, list) {
    k = split(includes[at], list, " ")
    for (i = 1; i <= k; i++) if (!((from, list[i]) in reaches)) {
        reaches[from, list[i]] = 1
        close_over(from, list[i])
    }
}
# The header that file f has the name t from, or "".
function provider(f, t,    i, k, list, best, kind, score, top) {
    if ((f, t) in defines && !((f, t) in undefined) && defines[f, t] !~ /weak/) return ""
    k = split(providers[t], list, " ")
    for (i = 1; i <= k; i++) {
        if (list[i] == f || list[i] !~ /h$/ || !((f, list[i]) in reaches) || (list[i], t) in undefined) continue
        kind = defines[list[i], t]
        if ((f, t) in declared && (kind ~ /variable/ || kind ~ /function/ && !((f, t) in called))) continue
        # An opaque type is that of backend.h, except in the folder that completes it.
        score = kind ~ /weak/ ? 2 : directory(f) == directory(list[i]) ? 3 : 1
        if (index(includes[f] " ", " " list[i] " ")) score += 0.5
        if (score > top) { top = score; best = list[i] }
    }
    if (k) return best
    for (i in owner) if (index(t, i) == 1 && t != i && owner[i] != f && (f, owner[i]) in reaches) return owner[i]
    for (i in configured) if (index(t, i) == 1 && !(i in enumerated)) {
        if (index(configured[i] " ", " " f " ")) return ""
        k = split(configured[i], list, " ")
        for (i = 1; i <= k; i++) if ((f, list[i]) in reaches) return list[i]
        return ""
    }
    return ""
}
function note(f, h, t, count) {
    if (!((f, h) in needs)) { needs[f, h] = 0; wants[f] = wants[f] " " h }
    names[f, h] = names[f, h] " " t
    amount[f, h, t] = count
}
function find_uses(f,    i, j, k, p, list, fix, made, h) {
    close_over(f, f)
    k = split(used[f], list, " ")
    for (i = 1; i <= k; i++) if ((h = provider(f, list[i])) != "") note(f, h, list[i], uses[f, list[i]])
    # Names that this file's macros make: TENSOR_##weight.
    p = split(pasted[f], fix, " ")
    for (j = 1; j <= p; j++) {
        h = fix[j] in owner ? owner[fix[j]] : f
        if (h != f && (f, h) in reaches && !((f, h) in needs)) note(f, h, fix[j], 1)
        for (i = 1; i <= k; i++) {
            made = fix[j] list[i]
            if ((f, made) in listed || (h = provider(f, made)) == "") continue
            listed[f, made] = 1
            note(f, h, made, 1)
        }
    }
}
# ---- results -----------------------------------------------------------------------------------------------------

# Up to four names of header h that f uses most, within `room` characters.
function annotation(f, h, room,    i, k, list, best, text, taken, more) {
    k = split(names[f, h], list, " ")
    text = ""
    for (taken = 0; taken < 4 && taken < k; taken++) {
        best = 0
        for (i = 1; i <= k; i++) if (list[i] != "" && (!best || amount[f, h, list[i]] > amount[f, h, list[best]] || \
            amount[f, h, list[i]] == amount[f, h, list[best]] && list[i] < list[best])) best = i
        if (length(text) + length(list[best]) + 15 > room) break
        text = text (text == "" ? "" : ", ") list[best]
        list[best] = ""
    }
    return text == "" ? "" : " /* " text (taken < k ? ", ..." : "") " */"
}
function allowed(f, h,    from, to) {
    if (f !~ /^llmc\/.*\//) return 1
    split(f, from, "/")
    to = h
    sub(/^llmc\//, "", to)
    sub(/\/.*/, "", to)
    if (h !~ /^llmc\//) to = directory(h)
    return may[from[2]] ~ / all / || index(may[from[2]], " " to " ")
}
function sort_lines(a, k,    i, j, t) {
    for (i = 2; i <= k; i++) {
        t = a[i]
        for (j = i; j > 1 && a[j - 1] > t; j--) a[j] = a[j - 1]
        a[j] = t
    }
}
# Prints the includes in[1..k] of one run of lines, sorted, with their annotations in a column.
function print_run(f, k, result,    i, width, t, path, pad) {
    sort_lines(in_run, k)
    width = 0
    for (i = 1; i <= k; i++) if (length(in_run[i]) > width) width = length(in_run[i])
    for (i = 1; i <= k; i++) {
        path = resolve(f, in_run[i])
        pad = sprintf("%*s", width - length(in_run[i]), "")
        t = path in kept ? " " kept[path] : annotation(f, path, 120 - width - 11)
        print "#include \"" in_run[i] "\"" (t == "" ? "" : pad t) > result
    }
}
function rewrite(f, result,    line, k, first, i, list, c, to, t, pending) {
    first = 1
    k = 0
    split("", kept)
    split("", present)
    # What is included elsewhere in the file, under a condition or after a first run, stays there.
    while ((getline line < f) > 0) if (line ~ /^#include "/) {
        to = resolve(f, included(line))
        present[to] = 1
        if (match(line, /\/\* keep:.*/)) kept[to] = substr(line, RSTART)
    }
    close(f)
    printf "" > result
    while ((getline line < f) > 0) {
        if (line ~ /^#include "/) {
            t = included(line)
            to = resolve(f, t)
            if ((f, to) in needs || to in kept || !(to in known) || to ~ /\.c$/) in_run[++k] = t
            pending = 1
            continue
        }
        if (pending) {
            if (first) {
                c = split(wants[f], list, " ")
                for (i = 1; i <= c; i++) if (!(list[i] in present)) {
                    if (allowed(f, list[i])) in_run[++k] = relative(f, list[i])
                    else {
                        print f ": uses" names[f, list[i]] " of " list[i] \
                            ", which the table in llmc/README.md does not let it include" > "/dev/stderr"
                        bad = 1
                    }
                }
            }
            print_run(f, k, result)
            split("", in_run)
            first = pending = k = 0
        }
        print line > result
    }
    if (pending) print_run(f, k, result)
    close(f)
    close(result)
}
function check_file(f,    line, number, to, list, k, i, c) {
    number = 0
    while ((getline line < f) > 0) {
        number++
        if (line !~ /^#include "[^"]+" *\/\* [A-Za-z_0-9, .()]+ \*\/$/) continue
        to = resolve(f, included(line))
        match(line, /\/\* .* \*\//)
        line = substr(line, RSTART + 3, RLENGTH - 6)
        gsub(/\(\)|, \.\.\./, "", line)
        k = split(line, list, ", *")
        for (i = 1; i <= k; i++) {
            checked++
            if (index(names[f, to] " ", " " list[i] " ")) continue
            c = (to, list[i]) in defines ? "which the file does not use" : "which that header does not define"
            print f ":" number ": the comment behind the include of " to " names " list[i] ", " c
            bad = 1
        }
    }
    close(f)
}

END {
    file_end()
    targets = split(target, targeted, " ")
    for (i = 1; i <= files; i++) known[order[i]] = 1
    for (t = 1; t <= targets; t++) {
        find_uses(targeted[t])
        if (check) check_file(targeted[t])
        else rewrite(targeted[t], out "/" targeted[t])
    }
    if (check && !bad) printf "%d names behind includes are defined there and used here\n", checked
    exit bad
}
