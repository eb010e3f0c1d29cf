#!/bin/sh
# completion.sh - prints the completion of a program's options for a shell, from what its --help prints:
#
#     scripts/completion.sh bash build/bin/llmc-train-sft >llmc-train-sft
#     scripts/completion.sh zsh build/bin/llmc-train-sft >_llmc-train-sft
#
# The names of a choice are completed, and files and directories where an option takes one.
set -eu
shell=$1
program=$2
COLUMNS=1000 "$program" --help | awk -v shell="$shell" -v program="${program##*/}" -v q="'" '
    function quoted(text) { gsub(q, q "\\" q q, text); gsub(/\[|\]|:/, "\\\\&", text); return text }
    # The names of a choice: those after the last colon of the help text, separated by bars.
    function names(text) {
        sub(/ \(default: [^)]*\)$/, "", text)
        if (!match(text, /: [^ ]*\|[^ ]*$/)) return ""
        text = substr(text, RSTART + 2)
        gsub(/\|/, " ", text)
        return text
    }
    function add(letter, option, kind, text,    action, list) {
        list = kind == "NAME" ? names(text) : ""
        if (shell == "zsh") {
            action = kind == "" ? "" : ":" kind ":" (list ? "(" list ")" : kind ~ /DIR/ ? "_files -/" : kind ~ /FILE|PATH/ ? "_files" : " ")
            sub(/: .*\|.*/, "", text)
            out = out " \\\n    " q "--" option "[" quoted(text) "]" action q
            if (letter) out = out " \\\n    " q "-" letter "[" quoted(text) "]" action q
            return
        }
        words = words " --" option (letter ? " -" letter : "")
        key = "--" option (letter ? "|-" letter : "")
        if (list) cases = cases "    " key ") COMPREPLY=($(compgen -W \"" list "\" -- \"$word\")); return ;;\n"
        else if (kind ~ /FILE|PATH/) files = files (files ? "|" : "") key
        else if (kind ~ /DIR/) folders = folders (folders ? "|" : "") key
        else if (kind != "") others = others (others ? "|" : "") key
    }
    /^  -[A-Za-z], --|^      --/ {
        line = $0
        letter = substr(line, 3, 1) == "-" ? substr(line, 4, 1) : ""
        line = substr(line, 9)
        split(line, part, " ")
        option = part[1]
        text = substr(line, length(option) + 1)
        kind = match(text, /^ [^ ]+  +/) ? part[2] : match(text, /^ [^ ]+$/) ? part[2] : ""
        if (text ~ /^ [^ ]+$/) { getline text }
        else if (kind != "") text = substr(text, length(kind) + 2)
        sub(/^ +/, "", text)
        if (option ~ /^\[no-\]/) {
            option = substr(option, 6)
            add("", "no-" option, "", text)
        }
        add(letter, option, kind, text)
    }
    END {
        name = program
        gsub(/-/, "_", name)
        if (shell == "zsh") {
            print "#compdef " program "\n_arguments" out " \\\n    " q "*:file:_files" q
            exit
        }
        print "_" name "() {\n    local word=${COMP_WORDS[COMP_CWORD]} last=${COMP_WORDS[COMP_CWORD-1]}\n    case $last in"
        printf "%s", cases
        if (folders) print "    " folders ") compopt -o filenames; COMPREPLY=($(compgen -d -- \"$word\")); return ;;"
        if (files) print "    " files ") compopt -o filenames; COMPREPLY=($(compgen -f -- \"$word\")); return ;;"
        if (others) print "    " others ") return ;;"
        print "    esac\n    if [[ $word == -* ]]; then\n        COMPREPLY=($(compgen -W \"" substr(words, 2) "\" -- \"$word\"))"
        print "    else\n        compopt -o filenames\n        COMPREPLY=($(compgen -f -- \"$word\"))\n    fi\n}"
        print "complete -F _" name " " program
    }'
