# embed.awk - writes text files as C functions that return them: report.css as report_css().
#
#     awk -f llmc/report/embed.awk llmc/report/report.css llmc/report/report.js > build/include/report_style.h
#
# With -v whole=1 every line stays as it is. Otherwise indentation, empty lines and comments are left out. A comment begins with /* at the start of a line and ends with */
# at the end of a line; any other one stops the build, because a part of the text could be lost with it.

function end_function() {
    if (comment) stop("the last comment has no end")
    if (name) print "        ;\n}"
}

function stop(why) {
    print FILENAME ":" FNR ": " why ", expected each comment on lines of its own" > "/dev/stderr"
    name = ""
    failed = 1
    exit 1
}

NR == 1 { print "/* Made by embed.awk, a change here would be lost. */" }

FNR == 1 {
    end_function()
    name = FILENAME
    sub(/.*\//, "", name)
    gsub(/[^a-z0-9]/, "_", name)
    print "\nstatic inline const char *" name "(void) {\n    return"
}

!whole {
    gsub(/^[ \t]+|[ \t]+$/, "")
    if (/^\/\*/) comment = 1
    else if (!comment && /\/\*/) stop("a comment behind text")
    if (comment) {
        if (/\*\/./) stop("text behind a comment")
        if (/\*\/$/) comment = 0
        next
    }
    if ($0 == "") next
}

{
    # Quotes and backslashes have a meaning in a C string, and two question marks may begin a trigraph.
    gsub(/["\\?]/, "\\\\&")
    print "        \"" $0 "\\n\""
}

END { if (!failed) end_function() }
