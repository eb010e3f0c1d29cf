/* report.h - self-contained HTML report of a run.
 *
 * The page uses neither the network nor other files. It shows, from top to bottom: program, run time and model; the
 * final numbers, before and after; the curves in groups; completions of the same prompts side by side, before on the
 * left and after on the right, with their rewards; the configuration; all metrics as a table. Curves are SVG. A short
 * script adds the values under the pointer; without it the page is complete. Light or dark follows the reader's system.
 *
 *     if (!report_write(&history, "run/report.html", false, &e)) die("%s", e.text);
 *
 * Every History can be written, also one without steps or samples or with a single point. All text that is not part of
 * the program goes through html_text(). A completion counts as right at a reward of 0.9 or more and as wrong below 0.5.
 */
#ifndef LLMC_REPORT_REPORT_H
#define LLMC_REPORT_REPORT_H

#include "history.h"
#include "html.h"
#include "../base/io.h"
#include "curves.h"
#include "overoptimisation_page.h"
#include <time.h>

enum {
    REPORT_SHOWN = 8,
    REPORT_PROMPTS = 64,
    REPORT_TEXT = 6000
}; /* prompts shown open, in all; bytes of a completion */

/* ---- style and script ---- */

static inline const char *report_css(void) {
    return ":root{color-scheme:light dark;--paper:#fcfbf8;--card:#fff;--ink:#1c1b19;--soft:#6b6862;--rule:#dcd8cf;--grid:#ebe8e1;"
           "--a0:#1d5c96;--a1:#c0540f;--ok:#14764f;--okbg:#e8f4ee;--bad:#b0342a;--badbg:#fbeeec;--mid:#8a6100;--midbg:#faf3e0}\n"
           "@media(prefers-color-scheme:dark){:root{--paper:#141518;--card:#1a1b1f;--ink:#e9e6df;--soft:#9c978d;--rule:#35363c;"
           "--grid:#27282d;--a0:#7db7ee;--a1:#f2a36b;--ok:#66cfa2;--okbg:#172822;--bad:#f3968a;--badbg:#2f1d1c;--mid:#dcb658;"
           "--midbg:#2b2517}}\n"
           "*{box-sizing:border-box}\n"
           "body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,"
           "'Helvetica Neue',Arial,sans-serif;font-variant-numeric:tabular-nums}\n"
           "main{max-width:1180px;margin:0 auto;padding:56px 32px 96px}\n"
           "h1,h2{font-family:Charter,'Bitstream Charter','Iowan Old Style','Sitka Text',Cambria,Georgia,'Liberation Serif',serif;"
           "font-weight:600;line-height:1.15;letter-spacing:-.01em;margin:0}\n"
           "h1{font-size:42px}\n"
           "h2{font-size:28px;margin:72px 0 8px;padding-top:20px;border-top:1px solid var(--rule)}\n"
           "h3{font-size:13px;font-weight:600;letter-spacing:.08em;text-transform:uppercase;color:var(--soft);margin:40px 0 12px}\n"
           "h4{font-size:15px;font-weight:600;margin:0;line-height:1.3}\n"
           "p{margin:0}code,pre,.mono{font-family:ui-monospace,'SF Mono',SFMono-Regular,Menlo,Consolas,'Liberation Mono',monospace}\n"
           "a{color:inherit;text-decoration-color:var(--rule);text-underline-offset:3px}a:hover{text-decoration-color:currentColor}\n"
           ".kicker{font-size:14px;color:var(--soft);display:flex;justify-content:space-between;gap:24px;flex-wrap:wrap;margin-bottom:20px}\n"
           ".kicker nav{display:flex;gap:20px}\n"
           ".facts{display:flex;flex-wrap:wrap;gap:4px 28px;margin-top:18px;color:var(--soft)}.facts b{color:var(--ink);font-weight:600}\n"
           ".lead{margin-top:10px;color:var(--soft);max-width:75ch;overflow-wrap:anywhere}\n"
           ".note{color:var(--soft);max-width:75ch}\n"
           ".scroll{overflow-x:auto}\n"
           "table{border-collapse:collapse;width:100%}\n"
           "th{font-size:13px;font-weight:500;color:var(--soft);text-align:right;padding:6px 0 6px 24px;white-space:nowrap}\n"
           "td{text-align:right;padding:9px 0 9px 24px;border-top:1px solid var(--grid);white-space:nowrap}\n"
           "th:first-child,td:first-child{text-align:left;padding-left:0;white-space:normal}\n"
           "thead+tbody tr:first-child td{border-top-color:var(--rule)}\n"
           ".final{max-width:980px;margin-top:20px}.final td{font-size:17px}.final .after{font-weight:650}.final .before,.final .change{color:var(--soft)}\n"
           ".final tr.first td{font-size:21px;padding-top:14px;padding-bottom:14px}.final tr.first .after{font-size:30px;color:var(--a0);line-height:1.1}\n"
           ".final td.bar{width:190px}.final svg{width:160px;height:14px;display:block;margin-left:auto}\n"
           ".bar path{stroke:var(--grid);stroke-width:2;stroke-linecap:round}.bar path.way{stroke:var(--a0)}.bar circle{fill:var(--a0);stroke:var(--a0);stroke-width:1.5}.bar circle.from{fill:var(--paper)}\n"
           ".curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,326px),1fr));gap:36px 40px}\n"
           "figure{margin:0;min-width:0;display:grid;grid-row:span 2;grid-template-rows:subgrid;row-gap:2px}figure.wide{grid-column:1/-1}figure.wide svg:first-child{display:none}\n"
           "@media(min-width:760px){figure.wide{grid-column:span 2}figure.wide svg:first-child{display:block}figure.wide svg:not(:first-child){display:none}}\n"
           "figcaption code{font-size:12px;font-weight:400;color:var(--soft);margin-left:4px;overflow-wrap:anywhere}\n"
           "figcaption code.only{font-size:13.5px;font-weight:600;color:var(--ink);margin:0}\n"
           "figcaption p{font-size:13px;color:var(--soft);line-height:1.35;min-height:1.35em}\n"
           "figure svg{width:100%;height:auto;display:block;margin-top:4px;touch-action:pan-y;overflow:visible}\n"
           "svg text{font-size:10px;fill:var(--soft)}svg .axis{font-style:italic}svg .last{font-size:11.5px;font-weight:650}\n"
           "svg .name{font-size:10px}.wide svg:first-child text{font-size:11px}.wide svg:first-child .last{font-size:13px}\n"
           "svg path{fill:none;stroke-linejoin:round;stroke-linecap:round}.grid{stroke:var(--grid);stroke-width:1;stroke-linecap:butt}.grid.base{stroke:var(--rule)}\n"
           ".line{stroke-width:1.7}.raw{stroke-width:1;opacity:.32}.raw.dense{stroke-width:.7;opacity:.22}.line.a0,.raw.a0{stroke:var(--a0)}.line.a1,.raw.a1{stroke:var(--a1)}\n"
           "svg path.band{stroke:none;opacity:.13}.band.a0{fill:var(--a0)}.band.a1{fill:var(--a1)}\n"
           "circle.a0,text.a0{fill:var(--a0)}circle.a1,text.a1{fill:var(--a1)}svg .a0.last,svg .a0.name{fill:var(--a0)}svg .a1.last,svg .a1.name{fill:var(--a1)}\n"
           "i.a0{color:var(--a0)}i.a1{color:var(--a1)}\n"
           ".hair{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 2}.tip{paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round;font-weight:600}svg .tip.at{fill:var(--ink);font-weight:400}\n"
           ".stats{display:flex;flex-wrap:wrap;gap:0 11px;font-size:12px;color:var(--soft);line-height:1.5;padding-left:4px}.stats b{font-weight:600;color:var(--ink)}.stats i{font-style:normal;min-width:58px}\n"
           ".tally{display:grid;grid-template-columns:max-content max-content 1fr;gap:6px 16px;align-items:center;margin:20px 0 28px;font-size:15px}\n"
           ".tally div{display:flex;flex-wrap:wrap;gap:4px}.tally a{width:15px;height:15px;border-radius:3px;display:block;border:1.5px solid var(--soft)}\n"
           ".tally a.ok{background:var(--ok);border-color:var(--ok)}.tally a.bad{border-color:var(--bad)}.tally a.mid{border-color:var(--mid);background:linear-gradient(135deg,var(--mid) 50%,transparent 50%)}\n"
           ".prompt{border-top:1px solid var(--rule);padding:14px 0 16px;display:grid;grid-template-columns:minmax(170px,1fr) 3.2fr;gap:12px 28px}\n"
           "pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font-size:13.5px;line-height:1.5;unicode-bidi:isolate;tab-size:4}\n"
           ".ask{display:grid;grid-template-columns:1.5em 1fr;align-content:start;padding-top:7px}.ask .n{color:var(--soft);font-size:13px}.ask pre{font-size:14px;font-weight:600;max-height:18em;overflow:auto}\n"
           ".ask .answer{grid-column:2;font-size:13px;color:var(--soft);overflow-wrap:anywhere;margin-top:4px}\n"
           ".pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,260px),1fr));gap:8px 16px}.takes{min-width:0}\n"
           ".take{border-left:3px solid var(--rule);background:var(--card);padding:6px 14px 8px;border-radius:0 4px 4px 0}\n"
           ".take pre{max-height:18em;overflow:auto}.take .got{font-size:13px;font-weight:600;margin-bottom:2px;color:var(--soft)}\n"
           ".take+.take{margin-top:8px}.take .got span{font-weight:400;color:var(--soft);margin-right:10px}.take.ok{border-color:var(--ok);background:var(--okbg)}.take.ok .got{color:var(--ok)}.take.bad{border-color:var(--bad);background:var(--badbg)}.take.bad .got{color:var(--bad)}.take.mid{border-color:var(--mid);background:var(--midbg)}.take.mid .got{color:var(--mid)}\n"
           "mark{background:none;color:inherit;font-weight:700;text-decoration:underline;text-decoration-thickness:2px;text-underline-offset:3px}\n"
           ".none{color:var(--soft);font-style:italic}\n"
           "details{margin-top:12px}summary{cursor:pointer;color:var(--soft);font-size:14px}summary:hover{color:var(--ink)}.between{display:grid;gap:8px;padding-top:8px}.prompt details{margin-top:8px}.prompt summary{font-size:13px}\n"
           ".config{columns:330px 3;column-gap:40px;margin-top:20px}.config section{margin-bottom:22px}.config h3{margin:0 0 6px;break-after:avoid}\n"
           ".config dl{margin:0;font-size:13.5px}.config dl div{display:flex;justify-content:space-between;gap:16px;border-top:1px solid var(--grid);padding:3.5px 0;break-inside:avoid}\n"
           ".config dt{color:var(--soft);white-space:nowrap}.config dd{margin:0;text-align:right;overflow-wrap:anywhere;min-width:0}\n"
           ".all td,.all th{font-size:13px;padding-top:4px;padding-bottom:4px}.all{margin-top:10px}\n"
           "@media(max-width:640px){main{padding:28px 18px 64px}h1{font-size:32px}.final td.bar,.final th.bar{display:none}.final tr.first .after{font-size:24px}.final tr.first td{font-size:18px}td,th{padding-left:14px}.prompt{grid-template-columns:1fr}}\n"
           "@media print{.take pre,.ask pre{max-height:none}main{max-width:none;padding:0}figure,.prompt{break-inside:avoid}}\n";
}

/* Script that shows, under the pointer, a hairline through all charts at the same step and the values at that step. */
static inline const char *report_script(void) {
    return "(function(){var N='http://www.w3.org/2000/svg',charts=[];\n"
           "function make(svg,tag,cls){var e=document.createElementNS(N,tag);e.setAttribute('class',cls);svg.appendChild(e);return e}\n"
           "function put(e,o){for(var k in o)e.setAttribute(k,o[k])}\n"
           "function say(v,share){if(v==null)return '\\u2013';if(share)return +(100*v).toPrecision(4)+'%';var a=Math.abs(v);\n"
           " return a>=1e4?Math.round(v).toLocaleString('en'):a&&a<1e-3?v.toExponential(2):String(+v.toPrecision(4))}\n"
           "document.querySelectorAll('figure script').forEach(function(script){var d=JSON.parse(script.textContent);\n"
           " if(!d)return;var svg=script.previousElementSibling;charts.push({d:d,svg:svg,marks:null});\n"
           " svg.addEventListener('pointermove',function(ev){var r=svg.getBoundingClientRect(),w=svg.viewBox.baseVal.width,b=d.box;\n"
           "  var u=((ev.clientX-r.left)/r.width*w-b[0])/(b[1]-b[0]);show(d.x[0]+Math.max(0,Math.min(1,u))*(d.x[1]-d.x[0]),svg)});\n"
           " svg.addEventListener('pointerleave',hide)});\n"
           "function hide(){charts.forEach(function(c){if(c.marks)c.marks.forEach(function(m){m.remove()});c.marks=null})}\n"
           "function near(x,at){var lo=0,hi=x.length-1;while(hi-lo>1){var m=(lo+hi)>>1;if(x[m]<at)lo=m;else hi=m}\n"
           " return Math.abs(x[lo]-at)<=Math.abs(x[hi]-at)?lo:hi}\n"
           "function show(step,active){hide();charts.forEach(function(c){var d=c.d,b=d.box,svg=c.svg,m=c.marks=[],row=0;\n"
           " function X(v){return b[0]+(b[1]-b[0])*(v-d.x[0])/(d.x[1]-d.x[0])}\n"
           " function Y(v){if(d.log)v=Math.log10(v);return b[3]-(b[3]-b[2])*(v-d.y[0])/(d.y[1]-d.y[0])}\n"
           " d.lines.forEach(function(l,i){if(!l.x.length)return;var k=near(l.x,step),v=(l.s||l.r)[k],x=X(l.x[k]),right=x>(b[0]+b[1])/2;\n"
           "  function write(v,cls,what){var t=make(svg,'text','tip '+cls);put(t,{x:x+(right?-7:7),y:b[2]+9+13*row++,'text-anchor':right?'end':'start'});\n"
           "   t.textContent=(what||'')+(cls==='at'?v:say(v,d.share));m.push(t)}\n"
           "  if(!row){var h=make(svg,'path','hair');put(h,{d:'M'+x+' '+b[2]+'V'+b[3]});m.push(h);write('step '+l.x[k],'at')}\n"
           "  var o=make(svg,'circle','end a'+i);put(o,{cx:x,cy:Y(v),r:3});m.push(o);\n"
           "  write(l.r[k],'a'+i);if(l.s&&svg===active)write(l.s[k],'a'+i,'smoothed ');\n"
           " })})}})();\n";
}

/* ---- head ---- */

static inline const char *report_title(const char *program) {
    static const char *const known[][2] = {{"train_sft", "Supervised fine-tuning"},
                                           {"train_rm", "Reward model"},
                                           {"train_ppo", "Proximal policy optimisation"},
                                           {"train_dpo", "Direct preference optimisation"},
                                           {"train_grpo", "Group-relative policy optimisation"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(program, known[i][0])) return known[i][1];
    return program;
}

/* 161.3 -> "2 min 41 s" */
static inline void report_duration(double seconds, char *text, size_t size) {
    const long long s = seconds < 1e12 ? (long long)(seconds + 0.5) : 0;
    if (seconds < 9.95) snprintf(text, size, "%.1f s", seconds);
    else if (s < 60) snprintf(text, size, "%lld s", s);
    else if (s < 3600) snprintf(text, size, "%lld min %lld s", s / 60, s % 60);
    else snprintf(text, size, "%lld h %lld min", s / 3600, s / 60 % 60);
}

static inline void report_head(FILE *f, const History *h, const CurveList *curves, bool running) {
    const char *program = h->program ? h->program : "run", *title = report_title(program);
    fputs("<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
          "<meta name='viewport' content='width=device-width,initial-scale=1'><title>",
          f);
    html_text(f, title);
    fprintf(f, "</title>\n<style>\n%s</style></head>\n<body><main>\n<header><div class='kicker'><span class='mono'>",
            report_css());
    html_text(f, program);
    fputs("</span><nav>", f);
    if (h->final.count || curves->count) fputs("<a href='#numbers'>Numbers</a>", f);
    if (curves->count) fputs("<a href='#curves'>Curves</a>", f);
    if (h->sample_count) fputs("<a href='#samples'>Samples</a>", f);
    if (h->config.count) fputs("<a href='#configuration'>Configuration</a>", f);
    fputs("</nav></div>\n<h1>", f);
    html_text(f, title);
    fputs("</h1>\n", f);
    for (size_t i = 0; i < h->header.count; i++) {
        fputs("<p class='lead'>", f);
        html_text(f, h->header.rows[i].name);
        fputs("</p>\n", f);
    }
    char text[64];
    fputs("<p class='facts'>", f);
    if (!h->lines) fputs("<span>No step has been logged.</span>", f);
    else {
        if (h->first_step > 1)
            fprintf(f, "<span>steps <b>%lld to %lld</b></span>", (long long)h->first_step, (long long)h->last_step);
        else fprintf(f, "<span><b>%lld</b> step%s</span>", (long long)h->last_step, h->last_step == 1 ? "" : "s");
        report_duration(h->seconds, text, sizeof text);
        fprintf(f, "<span>%s <b>%s</b></span>", running ? "running for" : "took", text);
        const double per_step = h->seconds / (double)h->lines;
        if (per_step > 0) {
            chart_value(per_step < 1 ? 1e3 * per_step : per_step, false, text);
            fprintf(f, "<span><b>%s %s</b> per step</span>", text, per_step < 1 ? "ms" : "s");
        }
        const time_t at = (time_t)h->finished_at;
        struct tm local;
        if (h->finished_at > 0 && h->finished_at < 1e11 && localtime_r(&at, &local) &&
            strftime(text, sizeof text, "%-d %B %Y, %H:%M", &local))
            fprintf(f, "<span>%s <b>%s</b></span>", running ? "still running; last step" : "ended", text);
    }
    fputs("</p></header>\n", f);
}

/* ---- final numbers ---- */

/* Splits "31.2 %" into its number, its count of decimals and its unit; false if it does not begin with a number. */
static inline bool report_number(const char *text, double *number, int *decimals, const char **unit) {
    char *end;
    if (!text || !strchr("+-.0123456789", text[0]) || !text[0]) return false;
    *number = strtod(text, &end);
    if (end == text || !isfinite(*number)) return false;
    const char *point = (const char *)memchr(text, '.', (size_t)(end - text));
    *decimals = point ? (int)strspn(point + 1, "0123456789") : 0;
    *unit = end + strspn(end, " ");
    return true;
}

/* Draws a bar from 0 to 100 % with an open dot at `before` and a filled one at `after`. */
static inline void report_bar(FILE *f, double before, double after) {
    const double x = 7 + 146 * before / 100, z = 7 + 146 * after / 100;
    fprintf(f,
            "<svg viewBox='0 0 160 14' aria-hidden='true'><path d='M7 7H153'/><path class='way' d='M%.1f 7H%.1f'/>"
            "<circle class='from' cx='%.1f' cy='7' r='4'/><circle cx='%.1f' cy='7' r='4.5'/></svg>",
            x, z, x, z);
}

static inline void report_final_row(FILE *f, const char *name, const char *before, const char *after, bool first) {
    double a = 0, b = 0;
    int a_decimals = 0, b_decimals = 0;
    const char *a_unit = "", *b_unit = "";
    const bool same = report_number(before, &a, &a_decimals, &a_unit) &&
                      report_number(after, &b, &b_decimals, &b_unit) && !strcmp(a_unit, b_unit);
    const bool percent = same && a_unit[0] == '%';
    fprintf(f, "<tr%s><td>", first ? " class='first'" : "");
    html_text(f, name);
    fputs("</td><td class='before'>", f);
    if (before) html_text(f, before);
    fputs("</td><td class='after'>", f);
    if (after) html_text(f, after);
    fputs("</td><td class='change'>", f);
    if (same && a != b) {
        const int decimals = a_decimals > b_decimals ? a_decimals : b_decimals;
        char text[32];
        snprintf(text, sizeof text, "%.*f", decimals > 9 ? 9 : decimals, fabs(b - a));
        if (strtod(text, NULL) == 0) chart_value(fabs(b - a), false, text);
        fprintf(f, "%s%s", b > a ? "+" : "\xE2\x88\x92", text);
        if (percent) fputs(" points", f);
    }
    fputs("</td><td class='bar'>", f);
    if (percent && a >= 0 && a <= 100 && b >= 0 && b <= 100) report_bar(f, a, b);
    fputs("</td></tr>\n", f);
}

/* Writes the rows given to metrics_final(); if there are none, the first and last values of the headline curves. */
static inline void report_final(FILE *f, const History *h, const CurveList *curves) {
    if (!h->final.count && !curves->count) return;
    fprintf(f,
            "<section id='numbers'><h2>%s</h2><div class='scroll'><table class='final'><thead><tr><th></th><th>%s</th>"
            "<th>%s</th><th>change</th><th class='bar'></th></tr></thead><tbody>\n",
            h->final.count ? "Final numbers" : "First and last", h->final.count ? "before" : "first step",
            h->final.count ? "after" : "last step");
    for (size_t i = 0; i < h->final.count; i++)
        report_final_row(f, h->final.rows[i].name, h->final.rows[i].value, h->final.rows[i].after, i == 0);
    const size_t charts = h->final.count ? 0 : curves->count;
    for (size_t i = 0, shown = 0; i < charts && shown < 5; i++) {
        const Curve *c = &curves->curves[i];
        if (!(c->info->flags & CURVE_HEADLINE)) continue;
        const Series *s = c->chart.lines[c->chart.count - 1].mid;
        const ptrdiff_t last = chart_last(s);
        ptrdiff_t first = 0;
        while (first < last && !isfinite(s->values[first])) first++;
        if (last < 0) continue;
        char a[32], b[32], name[96];
        chart_value(s->values[first], c->chart.share, a);
        chart_value(s->values[last], c->chart.share, b);
        snprintf(name, sizeof name, "%s%s", c->info->title, c->eval || c->chart.count > 1 ? ", held-out" : "");
        report_final_row(f, name, a, b, shown++ == 0);
    }
    fputs("</tbody></table></div></section>\n", f);
}

/* ---- curves ---- */

static inline void report_curves(FILE *f, const CurveList *curves) {
    if (!curves->count) return;
    fputs(
        "<section id='curves'><h2>Curves</h2><p class='note'>Faint line: raw values. Strong line: moving average. The number "
        "at a curve's end is its last value.</p>\n",
        f);
    for (size_t i = 0; i < curves->count; i++) {
        const CurveGroup group = curves->curves[i].group;
        if (!i || curves->curves[i - 1].group != group)
            fprintf(f, "<h3>%s</h3><div class='curves'>\n", curve_group_name(group));
        curve_figure(f, &curves->curves[i], i == 0);
        if (i + 1 == curves->count || curves->curves[i + 1].group != group) fputs("</div>\n", f);
    }
    fputs("</section>\n", f);
}

/* ---- samples ---- */

static inline const char *report_class(double reward) {
    return !isfinite(reward) ? "" : reward >= 0.9 ? "ok" : reward < 0.5 ? "bad" : "mid";
}

/* Writes a completion; unless it is wrong, the last occurrence of the answer is marked. */
static inline void report_completion(FILE *f, const Sample *s) {
    const size_t all = strlen(s->completion);
    size_t n = all;
    if (n > REPORT_TEXT)
        for (n = REPORT_TEXT; n && ((unsigned char)s->completion[n] & 0xC0) == 0x80;) n--;
    const char *found = NULL;
    if (s->answer[0] && isfinite(s->reward) && s->reward >= 0.5)
        for (const char *c = s->completion; (c = strstr(c, s->answer)); c++)
            if ((size_t)(c - s->completion) + strlen(s->answer) <= n) found = c;
    fputs("<pre>", f);
    if (!all) fputs("<span class='none'>empty</span>", f);
    if (found) {
        const size_t at = (size_t)(found - s->completion), length = strlen(s->answer);
        html_bytes(f, s->completion, at);
        fputs("<mark>", f);
        html_bytes(f, found, length);
        fputs("</mark>", f);
        html_bytes(f, found + length, n - at - length);
    } else html_bytes(f, s->completion, n);
    if (n < all) fprintf(f, "<span class='none'> \xE2\x80\xA6 and %zu bytes more</span>", all - n);
    fputs("</pre>", f);
}

static inline void report_take(FILE *f, const Sample *s, bool scored) {
    const char *class = report_class(s->reward);
    char text[32];
    chart_value(s->reward, false, text);
    fprintf(f, "<div class='take %s'><div class='got'><span>", class);
    html_text(f, s->when);
    fputs("</span>", f);
    if (!isfinite(s->reward)) fputs(scored ? "not scored" : "", f);
    else {
        const char *verdict = *class == 'o'   ? "\xE2\x9C\x93 right"
                              : *class == 'b' ? "\xE2\x9C\x97 wrong"
                                              : "\xE2\x89\x88 partly right";
        fprintf(f, "%s, reward %s", verdict, text);
    }
    fputs("</div>", f);
    report_completion(f, s);
    fputs("</div>", f);
}

/* The samples' distinct prompts, in order of appearance, and distinct tags, with "before" first and "after" last. */
typedef struct ReportSamples {
    const char **prompts, **tags; /* (prompt_count), (tag_count) distinct */
    size_t prompt_count, tag_count;
    size_t *prompt_of, *tag_of; /* (samples) indices into prompts and tags */
    bool scored;                /* at least one sample has a reward */
} ReportSamples;

static inline size_t report_intern(const char ***list, size_t *count, const char *text) {
    for (size_t i = *count; i-- > 0;) /* backwards: equal texts are usually adjacent */
        if (!strcmp((*list)[i], text)) return i;
    *list = (const char **)xrealloc(*list, *count + 1, sizeof **list);
    (*list)[*count] = text;
    return (*count)++;
}

static inline ReportSamples report_samples_sort(const History *h) {
    ReportSamples r = {0};
    r.prompt_of = (size_t *)xcalloc(h->sample_count, sizeof *r.prompt_of);
    r.tag_of = (size_t *)xcalloc(h->sample_count, sizeof *r.tag_of);
    static const char *const ends[2] = {"before", "after"};
    for (int pass = 0; pass < 3; pass++) /* before; in between; after */
        for (size_t i = 0; i < h->sample_count; i++) {
            const char *when = h->samples[i].when;
            const int turn = !strcmp(when, ends[0]) ? 0 : !strcmp(when, ends[1]) ? 2 : 1;
            if (turn == pass) r.tag_of[i] = report_intern(&r.tags, &r.tag_count, when);
        }
    for (size_t i = 0; i < h->sample_count; i++) {
        r.prompt_of[i] = report_intern(&r.prompts, &r.prompt_count, h->samples[i].prompt);
        r.scored |= isfinite(h->samples[i].reward);
    }
    return r;
}

/* Writes all samples of one prompt and tag. */
static inline void report_takes(FILE *f, const History *h, const ReportSamples *r, size_t prompt, size_t tag) {
    fputs("<div class='takes'>", f);
    bool any = false;
    for (size_t i = 0; i < h->sample_count; i++)
        if (r->prompt_of[i] == prompt && r->tag_of[i] == tag) {
            report_take(f, &h->samples[i], r->scored);
            any = true;
        }
    if (!any) {
        fputs("<div class='take'><div class='got'><span>", f);
        html_text(f, r->tags[tag]);
        fputs("</span></div><span class='none'>not sampled</span></div>", f);
    }
    fputs("</div>", f);
}

static inline void report_prompt(FILE *f, const History *h, const ReportSamples *r, size_t prompt) {
    const char *answer = "";
    bool between = false;
    for (size_t i = 0; i < h->sample_count; i++)
        if (r->prompt_of[i] == prompt) {
            if (h->samples[i].answer[0]) answer = h->samples[i].answer;
            between |= r->tag_of[i] > 0 && r->tag_of[i] + 1 < r->tag_count;
        }
    fprintf(f, "<article class='prompt' id='prompt-%zu'><div class='ask'><span class='n'>%zu</span><pre>", prompt + 1,
            prompt + 1);
    html_text(f, r->prompts[prompt]);
    fputs("</pre>", f);
    if (answer[0]) {
        fputs("<span class='answer'>expected <code>", f);
        html_text(f, answer);
        fputs("</code></span>", f);
    }
    fputs("</div><div><div class='pair'>", f);
    report_takes(f, h, r, prompt, 0);
    if (r->tag_count > 1) report_takes(f, h, r, prompt, r->tag_count - 1);
    fputs("</div>", f);
    if (between) {
        fputs("<details><summary>in between</summary><div class='between'>", f);
        for (size_t tag = 1; tag + 1 < r->tag_count; tag++) report_takes(f, h, r, prompt, tag);
        fputs("</div></details>", f);
    }
    fputs("</div></article>\n", f);
}

/* Writes how many samples of a tag are right, and one square for each, which links to its prompt. */
static inline void report_tally(FILE *f, const History *h, const ReportSamples *r, size_t tag) {
    size_t right = 0, all = 0;
    for (size_t i = 0; i < h->sample_count; i++)
        if (r->tag_of[i] == tag && isfinite(h->samples[i].reward)) {
            all++;
            right += h->samples[i].reward >= 0.9;
        }
    if (!all) return;
    fputs("<span>", f);
    html_text(f, r->tags[tag]);
    fprintf(f, "</span><span><b>%zu of %zu</b> right</span><div>", right, all);
    for (size_t prompt = 0; prompt < r->prompt_count && prompt < REPORT_PROMPTS; prompt++)
        for (size_t i = 0; i < h->sample_count; i++)
            if (r->tag_of[i] == tag && r->prompt_of[i] == prompt && isfinite(h->samples[i].reward))
                fprintf(f, "<a class='%s' href='#prompt-%zu' title='prompt %zu' aria-label='prompt %zu'></a>",
                        report_class(h->samples[i].reward), prompt + 1, prompt + 1, prompt + 1);
    fputs("</div>", f);
}

static inline void report_samples(FILE *f, const History *h) {
    if (!h->sample_count) return;
    ReportSamples r = report_samples_sort(h);
    fputs("<section id='samples'><h2>Samples</h2><p class='note'>Completions of the same prompts", f);
    if (r.tag_count > 1) fputs(", side by side", f);
    fprintf(f, ".%s</p>\n<div class='tally'>",
            r.scored ? " A completion is right at a reward of 0.9 or more and wrong below 0.5. The expected answer is "
                       "underlined in completions that are not wrong."
                     : "");
    report_tally(f, h, &r, 0);
    if (r.tag_count > 1) report_tally(f, h, &r, r.tag_count - 1);
    fputs("</div>\n", f);
    const size_t shown = r.prompt_count < REPORT_PROMPTS ? r.prompt_count : REPORT_PROMPTS;
    for (size_t i = 0; i < shown; i++) {
        if (i == REPORT_SHOWN) fprintf(f, "<details><summary>%zu more prompts</summary>\n", shown - i);
        report_prompt(f, h, &r, i);
    }
    if (shown > REPORT_SHOWN) fputs("</details>", f);
    if (shown < r.prompt_count)
        fprintf(f, "<p class='note'>%zu further prompts are not shown.</p>", r.prompt_count - shown);
    fputs("</section>\n", f);
    free(r.prompts);
    free(r.tags);
    free(r.prompt_of);
    free(r.tag_of);
}

/* ---- tables ---- */

static inline void report_config(FILE *f, const History *h) {
    if (!h->config.count) return;
    fputs("<section id='configuration'><h2>Configuration</h2><div class='config'>", f);
    for (size_t i = 0; i < h->config.count; i++) {
        const HistoryRow *row = &h->config.rows[i];
        if (!i || !row->value) fprintf(f, "%s<section>", i ? "</dl></section>" : "");
        if (!row->value) {
            fputs("<h3>", f);
            html_text(f, row->name);
            fputs("</h3>", f);
        }
        if (!i || !row->value) fputs("<dl>", f);
        if (!row->value) continue;
        fputs("<div><dt>", f);
        html_text(f, row->name);
        fputs("</dt><dd class='mono'>", f);
        html_text(f, row->value[0] ? row->value : "\xE2\x80\x93");
        fputs("</dd></div>", f);
    }
    fputs("</dl></section></div></section>\n", f);
}

static inline void report_all(FILE *f, const History *h) {
    if (!h->series_count) return;
    fputs(
        "<section><h2>All metrics</h2><details><summary>first, last, minimum and maximum of each</summary>"
        "<div class='scroll'><table class='all'><thead><tr><th>name</th><th>first</th><th>last</th><th>min</th><th>max</th>"
        "<th>values</th></tr></thead><tbody>\n",
        f);
    for (size_t i = 0; i < h->series_count; i++) {
        const Series *s = &h->series[i];
        double low = INFINITY, high = -INFINITY;
        const size_t finite = chart_range(s, &low, &high);
        const ptrdiff_t last = chart_last(s);
        ptrdiff_t first = 0;
        while (first < last && !isfinite(s->values[first])) first++;
        const double shown[4] = {last < 0 ? NAN : s->values[first], last < 0 ? NAN : s->values[last], low, high};
        fputs("<tr><td class='mono'>", f);
        html_text(f, s->key);
        fputs("</td>", f);
        for (int k = 0; k < 4; k++) {
            char text[32];
            chart_value(shown[k], false, text);
            fprintf(f, "<td>%s</td>", text);
        }
        fprintf(f, "<td>%zu", finite);
        if (finite < s->count) fprintf(f, " of %zu", s->count);
        fputs("</td></tr>\n", f);
    }
    fputs("</tbody></table></div></details></section>\n", f);
}

/* ---- the page ---- */

/* Writes the page. running: the run has not ended. */
static inline void report_page(FILE *f, const History *h, bool running) {
    CurveList curves = curve_list(h);
    report_head(f, h, &curves, running);
    report_final(f, h, &curves);
    report_overoptimisation(f, h);
    report_curves(f, &curves);
    report_samples(f, h);
    report_config(f, h);
    report_all(f, h);
    fprintf(f, "</main>\n<script>\n%s</script>\n</body></html>\n", report_script());
    free(curves.curves);
}

/* Writes the page to a file, which is replaced only when the page is complete; "-" is standard output. */
static inline bool report_write(const History *h, const char *path, bool running, Error *e) {
    char *page;
    size_t n;
    FILE *f = (FILE *)checked(open_memstream(&page, &n), BUFSIZ);
    report_page(f, h, running);
    if (fclose(f)) die("out of memory: the report needs more than %zu bytes", n);
    Writer w;
    bool ok = writer_open(&w, path, e);
    if (ok) {
        ok = writer_write(&w, page, n, e) && writer_commit(&w, e);
        writer_abort(&w);
    }
    free(page);
    return ok;
}

/* Checks that a report can be written to `path`, without changing an existing file. */
static inline bool report_check(const char *path, Error *e) {
    Writer w;
    if (!writer_open(&w, path, e)) return false;
    writer_abort(&w);
    return true;
}

#endif
