/* style.h - the style and the script of a report's page.
 *
 * They are files of their own, report.css and report.js. When the programs are built, embed.awk turns them into C
 * strings, in the file report_style.h of the build folder.
 *
 *     fprintf(f, "<style>\n%s</style>", report_css());
 *     fprintf(f, "<script>\n%s</script>", report_js());
 */
#ifndef LLMC_REPORT_STYLE_H
#define LLMC_REPORT_STYLE_H

#if __has_include("report_style.h")
#include "report_style.h"
#else
#error "report_style.h is missing: build with make; or run make build/include/report_style.h and add -Ibuild/include"
#endif

#endif
