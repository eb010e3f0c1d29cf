#!/bin/sh
# page.sh SEED CHAPTER... - one page of what scripts/chapter.sh said with a seed: each claim, what was seen, its verdict, and links
# to the reports. Prints HTML; the links are relative to loops/ (or $LOOP_OUT).
loops=${LOOP_OUT:-loops} seed=$1
shift
cat <<END
<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>The book, runnable</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color-scheme: light dark }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .3em .6em; border-top: 1px solid #8888 }
td:last-child { white-space: nowrap } .no { font-weight: bold; color: #c30 }
</style>
<h1>The book, runnable: seed $seed</h1>
<table><tr><th>claim<th>seen<th>
END
for n; do
    said=$loops/chapter-$n-$seed/claims.txt
    [ -e "$said" ] || { echo "<tr><th colspan=3>Chapter $n<tr><td>-<td>did not run<td class=no>no result"; continue; }
    sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g; s/"/\&quot;/g' "$said" | awk -F'\t' -v n="$n" -v loops="$loops/" '
        $1 == "title" { title = $2 }
        $1 == "claim" { rows = rows "<tr><td>" $2 "<td>" $3 "<td" ($4 == "holds" ? "" : " class=no") ">" $4 "\n" }
        $1 == "report" {
            path = index($2, loops) == 1 ? substr($2, length(loops) + 1) : $2
            name = path
            sub(/\/report.html$/, "", name)
            links = links " <a href=\"" path "\">" name "</a>"
        }
        END { print "<tr><th colspan=3>Chapter " n ": " title links; printf "%s", rows }'
done
echo '</table></html>'
