/* rollouts.js - the widgets of a run's rollouts (report_rollouts.h): the clip, the strength of the KL penalty, the samples
 * of a prompt over the run, the group.
 *
 * Without this script the page has static tables. The functions of the first part have no other state than their
 * arguments, and the tests run them without a browser, on values of the C functions that they repeat. The second part
 * draws; it uses plot.js. All texts of the run become text nodes, never markup.
 *
 * A comment has lines of its own: it is left out of the page, like the indentation.
 */
var rollouts = (function () {
    var EPS = 1e-4;

    function known(values) { return values.filter(function (v) { return v != null && isFinite(v); }); }

    function mean(values) {
        var all = known(values);
        return all.length ? all.reduce(function (a, b) { return a + b; }, 0) / all.length : NaN;
    }

    /* Standard deviation with divisor n - 1. */
    function deviation(values) {
        var all = known(values), m = mean(all);
        if (all.length < 2) return NaN;
        return Math.sqrt(all.reduce(function (a, v) { return a + (v - m) * (v - m); }, 0) / (all.length - 1));
    }

    /* The number of ways to choose k of n; 0 if k is out of range. */
    function choose(n, k) {
        var c = 1;
        if (k < 0 || k > n) return 0;
        for (var i = 1; i <= k; i++) c = c * (n - k + i) / i;
        return c;
    }

    /* Advantages of the completions of one group, 0 for a reward of null: llmc/loss/advantage.h. gdpo takes parts, a list
     * of rewards for each completion, and weights, and treats the group as the batch. passk takes k; a reward of at least
     * 0.5 is right. */
    function advantages(kind, rewards, o) {
        var m = mean(rewards), s = deviation(rewards), n = known(rewards).length;
        function each(of) {
            return rewards.map(function (r) {
                var a = r == null || n < 2 ? 0 : of(r);
                return isFinite(a) ? a : 0;
            });
        }
        if (kind === 'grpo') return each(function (r) { return (r - m) / (s + EPS); });
        if (kind === 'dr_grpo') return each(function (r) { return r - m; });
        if (kind === 'rloo') return each(function (r) { return n / (n - 1) * (r - m); });
        if (kind === 'maxrl') return each(function (r) { return m > 0 ? (r - m) / m : 0; });
        if (kind === 'passk') {
            var wrong = known(rewards).filter(function (r) { return r < 0.5; }).length;
            var R = 1 - choose(wrong, o.k) / choose(n, o.k), d = Math.sqrt(R * (1 - R));
            return each(function (r) {
                if (!(d > 0)) return 0;
                return r >= 0.5 ? (1 - R) / d : (1 - R - choose(wrong - 1, o.k - 1) / choose(n - 1, o.k - 1)) / d;
            });
        }
        /* gdpo */
        var sums = rewards.map(function (r) { return r == null ? null : 0; });
        o.weights.forEach(function (w, k) {
            var part = o.parts.map(function (p) { return p[k]; }), pm = mean(part), ps = deviation(part);
            part.forEach(function (v, i) {
                if (v != null && sums[i] != null && isFinite(ps)) sums[i] += w * (v - pm) / (ps + EPS);
            });
        });
        var sm = mean(sums), ss = deviation(sums);
        return sums.map(function (v) { return v == null || !isFinite(ss) ? 0 : (v - sm) / (ss + EPS); });
    }

    /* The share of groups of G without a gradient if each completion is right with probability p. */
    function flat(p, G) { return Math.pow(p, G) + Math.pow(1 - p, G); }

    function clamp(x, low, high) { return Math.min(Math.max(x, low), high); }

    /* The surrogate of one token that is maximised, and its derivative by rho: llmc/loss/policy.h with the sign turned. s:
     * low and high (eps), delta (0: none), positive and negative (sapo's temperatures), mu (dppo: the probability under
     * the sampler), none: without a clip. cispo's weight is held constant: its derivative is by log pi. */
    function surrogate(kind, rho, A, s) {
        if (kind === 'cispo') {
            var weight = Math.min(rho, s.high);
            return {value: weight * A * Math.log(rho), slope: weight * A};
        }
        if (kind === 'sapo') {
            var tau = A > 0 ? s.positive : s.negative, g = 1 / (1 + Math.exp(-tau * (rho - 1)));
            return {value: 4 / tau * g * A, slope: 4 * g * (1 - g) * A};
        }
        if (kind === 'dppo') {
            var far = (rho - 1) * s.mu, gone = (A > 0 && far > s.high) || (A < 0 && far < -s.low);
            return {value: rho * A, slope: gone ? 0 : A};
        }
        if (kind === 'none') return {value: rho * A, slope: A};
        var capped = s.delta > 0 ? Math.min(rho, s.delta) : rho, clipped = clamp(rho, 1 - s.low, 1 + s.high);
        var least = clipped * A < capped * A ? clipped : capped;
        return {value: least * A, slope: least === rho ? A : 0};
    }

    /* The part of a bin [from, to) of log rho that is below x, or all or nothing of an open one. */
    function below(from, to, x) {
        if (Math.abs(x - from) < 2e-3 * Math.abs(x) + 1e-6) return 0;
        if (Math.abs(x - to) < 2e-3 * Math.abs(x) + 1e-6) return 1;
        if (x <= from) return 0;
        if (x >= to) return 1;
        return isFinite(from) && isFinite(to) ? (x - from) / (to - from) : 0.5;
    }

    /* The share of a histogram's counts that have no gradient beyond the thresholds low and high of log rho. Within a bin
     * the counts are taken as spread evenly. */
    function clipShare(clip, low, high) {
        var all = 0, gone = 0, rows = clip.counts.length;
        clip.counts.concat([clip.zero]).forEach(function (row, k) {
            row.forEach(function (n, bin) {
                var from = bin ? clip.edges[bin - 1] : -Infinity, to = bin < clip.edges.length ? clip.edges[bin] : Infinity;
                all += n;
                if (k < rows / 2) gone += n * below(from, to, low);
                else if (k < rows) gone += n * (1 - below(from, to, high));
            });
        });
        return all ? gone / all : 0;
    }

    /* The optimum of E[r] - beta KL over the distributions on a prompt's samples, which are drawn from the reference:
     * w_i = exp(r_i / beta) / sum_j exp(r_j / beta). optimum: beta log mean exp(r / beta), which equals reward - beta kl. */
    function tilt(rewards, gold, beta) {
        var n = rewards.length, top = Math.max.apply(null, rewards), sum = 0, r = 0, g = 0, kl = 0, squares = 0;
        rewards.forEach(function (v) { sum += Math.exp((v - top) / beta); });
        rewards.forEach(function (v, i) {
            var w = Math.exp((v - top) / beta) / sum;
            r += w * v;
            if (gold) g += w * gold[i];
            if (w > 0) kl += w * Math.log(n * w);
            squares += w * w;
        });
        return {reward: r, gold: gold ? g : null, kl: kl, effective: 1 / squares,
            optimum: top + beta * Math.log(sum / n)};
    }

    /* The means of tilt() over prompts: lists of {reward: [...], gold: [...]} without null. */
    function tiltAll(prompts, beta) {
        var all = prompts.map(function (p) { return tilt(p.reward, p.gold, beta); });
        function over(key) { return mean(all.map(function (t) { return t[key]; })); }
        return {reward: over('reward'), gold: over('gold'), kl: over('kl'), effective: over('effective')};
    }

    /* G of n indices, without replacement or with: a different choice for each seed. */
    function draw(n, G, replace, seed) {
        var left = [], chosen = [], a = seed >>> 0;
        function random() {
            a = (a + 0x6D2B79F5) >>> 0;
            var t = a ^ (a >>> 15);
            t = multiply(t, t | 1);
            t ^= t + multiply(t ^ (t >>> 7), t | 61);
            return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
        }
        function multiply(x, y) {
            return ((x & 0xffff) * y + ((((x >>> 16) * y) & 0xffff) << 16)) | 0;
        }
        for (var i = 0; i < n; i++) left.push(i);
        for (var k = 0; k < G && (replace || left.length); k++) {
            var at = Math.floor(random() * left.length);
            chosen.push(left[at]);
            if (!replace) left.splice(at, 1);
        }
        return chosen;
    }

    /* The words of a text in groups of 1 to 3; a text without spaces is taken by characters. */
    function grams(text) {
        var words = /\s/.test(text.trim()) ? text.trim().split(/\s+/) : text.split(''), all = [], n, i;
        var glue = words.length > 1 && !/\s/.test(text.trim()) ? '' : ' ';
        for (n = 1; n <= 3; n++)
            for (i = 0; i + n <= words.length; i++) all.push(words.slice(i, i + n).join(glue));
        return all;
    }

    /* Distinct groups of n words divided by all of them, over several texts. */
    function distinct(texts, n) {
        var seen = {}, all = 0, different = 0;
        texts.forEach(function (text) {
            var words = text.trim().split(/\s+/);
            if (words.length < n) words = text.split('');
            for (var i = 0; i + n <= words.length; i++) {
                var key = '\u0001' + words.slice(i, i + n).join('\u0001');
                all++;
                if (!seen[key]) different++;
                seen[key] = true;
            }
        });
        return all ? different / all : NaN;
    }

    /* What has become more frequent: the groups of words whose share of samples rose most from `before` to `after`, lists
     * of {text, reward, gold}, with the mean reward and gold reward of the samples that have it. A group that occurs only
     * within a longer one of the list is left out. */
    function risen(before, after, most) {
        var counts = {};
        function count(list, key) {
            list.forEach(function (s) {
                var seen = {};
                grams(s.text).forEach(function (g) {
                    var id = '\u0001' + g;
                    if (seen[id]) return;
                    seen[id] = true;
                    if (!counts[id]) counts[id] = {text: g, before: 0, after: 0, reward: [], gold: []};
                    counts[id][key]++;
                    if (key === 'after') {
                        counts[id].reward.push(s.reward);
                        counts[id].gold.push(s.gold);
                    }
                });
            });
        }
        count(before, 'before');
        count(after, 'after');
        return Object.keys(counts).map(function (id) {
            var c = counts[id];
            return {text: c.text, before: before.length ? c.before / before.length : 0,
                after: after.length ? c.after / after.length : 0, reward: mean(c.reward), gold: mean(c.gold)};
        }).filter(function (c) { return c.after > c.before; }).sort(function (a, b) {
            return (b.after - b.before) - (a.after - a.before) || b.text.length - a.text.length ||
                (a.text < b.text ? -1 : 1);
        }).filter(function (c, i, all) {
            return !all.slice(0, i).some(function (longer) {
                return longer.before === c.before && longer.after === c.after && longer.text.indexOf(c.text) >= 0;
            });
        }).slice(0, most);
    }

    /* The step since which the proxy rose and the gold reward fell in three dumps one after the other, or -1. points:
     * lists of {step, reward, gold}. */
    function hacked(points) {
        var run = 0;
        for (var i = 1; i < points.length; i++) {
            var a = points[i - 1], b = points[i];
            run = a.gold != null && b.gold != null && b.reward > a.reward && b.gold < a.gold ? run + 1 : 0;
            if (run === 3) return points[i - 3].step;
        }
        return -1;
    }

    /* A text as it can be shown: control characters and marks that turn the direction of the text become visible. */
    function visible(text) {
        /* biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for */
        return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, function (c) {
            var code = c.charCodeAt(0);
            return code < 256 ? '\\x' + (code < 16 ? '0' : '') + code.toString(16) : '\\u' + code.toString(16);
        });
    }

    /* For each token whether it was drawn: drawn has the lengths of runs, drawn ones first. */
    function isDrawn(drawn, n) {
        var all = [], on = true;
        (drawn || [n]).forEach(function (length) {
            for (var i = 0; i < length; i++) all.push(on);
            on = !on;
        });
        while (all.length < n) all.push(true);
        return all.slice(0, n);
    }

    /* The turns of a completion, from its runs of tokens: number and text of the drawn tokens and of those that answer the
     * turn; the seconds from the start of the completion when the turn began and ended, and those until the answer had come.
     * What is not known is null. What the completion observed before its first turn is the answer to one without tokens, which
     * ended at once. */
    function turns(sample) {
        var list = [], at = 0, times = sample.turn_times || [];
        (sample.drawn || [sample.tokens.length]).forEach(function (n, i) {
            var text = sample.tokens.slice(at, at + n).join('');
            at += n;
            if (i % 2 === 0) list.push({drawn: n, text: text, observed: 0, answer: ''});
            else {
                list[list.length - 1].observed = n;
                list[list.length - 1].answer = text;
            }
        });
        if (list[0].drawn === 0 && times.length === list.length - 1) times = [[0, 0]].concat(times);
        list.forEach(function (turn, i) {
            var own = times.length === list.length ? times[i] : [null, null];
            var next = times.length === list.length && i + 1 < list.length ? times[i + 1][0] : null;
            turn.began = own[0];
            turn.ended = own[1];
            turn.waited = next == null || own[1] == null ? null : next - own[1];
        });
        return list;
    }

    /* The values by which the tokens of a sample are coloured; null where there is none. */
    function values(sample, by) {
        var n = sample.tokens.length, list = [];
        function at(key, i) {
            var v = sample[key];
            return v == null ? null : v.length === undefined ? v : v[i] === undefined ? null : v[i];
        }
        for (var i = 0; i < n; i++) {
            var p = at('logp', i), q = at('ref_logp', i);
            if (by === 'kl') list.push(p == null || q == null ? null : p - q);
            else list.push(at(by, i));
        }
        return list;
    }

    /* Losses whose clip, if they have one, removes no gradient. */
    var GRADUAL = ['cispo', 'sapo', 'vespo'];

    /* The advantages of a sample's tokens, 0 where the clip removes the gradient; null where there is none. clip: the step's record, whose low and high are the thresholds of log rho, or of its mean over the completion; null:
     * rho is 1. */
    function kept(sample, clip) {
        var logs = sample.tokens.map(function (_text, i) {
            var p = (sample.logp || [])[i], old = (sample.old_logp || [])[i];
            return p == null || old == null ? null : p - old;
        }), whole = clip && clip.unit === 'completion' ? mean(logs) : null;
        return values(sample, 'advantage').map(function (A, i) {
            var log = logs[i] != null && whole != null ? whole : logs[i];
            if (A == null || log == null || !clip || GRADUAL.indexOf(clip.loss) >= 0) return A;
            return (A > 0 && clip.high != null && log > clip.high) || (A < 0 && clip.low != null && log < clip.low) ? 0 : A;
        });
    }

    /* The loss of a preference pair from the log-ratios of both completions to the reference: llmc/loss/preference.h. o: beta,
     * smoothing (0 to less than 1/2), tau (of discopop), lambda (of dpop). */
    function pairLoss(kind, chosen, rejected, o) {
        function ls(x) { return x < 0 ? x - Math.log(1 + Math.exp(x)) : -Math.log(1 + Math.exp(-x)); }
        function S(x) { return Math.exp(ls(x)); }
        var beta = o.beta, x = beta * chosen, y = beta * rejected, u = x - y, half = 1 / (2 * beta), e = o.smoothing, m;
        switch (kind) {
        case 'hinge': return Math.max(0, 1 - u);
        case 'ipo_sum': return (u / beta - half) * (u / beta - half);
        case 'exo_pair': return S(u) * (ls(u) - Math.log(1 - e)) + S(-u) * (ls(-u) - Math.log(e));
        case 'nca_pair': return -ls(x) - (ls(-x) + ls(-y)) / 2;
        case 'robust': return (-(1 - e) * ls(u) + e * ls(-u)) / (1 - 2 * e);
        case 'bco_pair': return -ls(x) - ls(-y);
        case 'sppo_hard': return (chosen - half) * (chosen - half) + (rejected + half) * (rejected + half);
        case 'apo_zero': return 1 - S(x) + S(y);
        case 'apo_down': return S(x) + 1 - S(u);
        case 'discopop':
            m = S(u / o.tau);
            return (1 - m) * -ls(u) + m * Math.exp(-u);
        case 'dpop': return -ls(u - o.lambda * Math.max(0, -x));
        default: return -(1 - e) * ls(u) - e * ls(-u);
        }
    }

    return {pairLoss: pairLoss, mean: mean, deviation: deviation, choose: choose, advantages: advantages, flat: flat, surrogate: surrogate,
        clipShare: clipShare, tilt: tilt, tiltAll: tiltAll, draw: draw, grams: grams, distinct: distinct, risen: risen,
        hacked: hacked, visible: visible, isDrawn: isDrawn, turns: turns, values: values, kept: kept};
})();

if (typeof document !== 'undefined') (function () {
    var R = rollouts, data = null;

    /* An element with attributes and contents: texts, or elements. */
    function el(tag, o) {
        var e = document.createElement(tag);
        for (var k in o) e.setAttribute(k, o[k]);
        return add.apply(null, [e].concat([].slice.call(arguments, 2)));
    }

    function add(e) {
        for (var i = 1; i < arguments.length; i++) {
            var part = arguments[i];
            if (part == null) continue;
            e.appendChild(typeof part === 'object' ? part : document.createTextNode(String(part)));
        }
        return e;
    }

    function empty(e) {
        while (e.firstChild) e.removeChild(e.firstChild);
        return e;
    }

    function number(v) { return v == null || !isFinite(v) ? '\u2013' : plot.say(v); }
    function seconds(v) { return v < 1 ? +(1000 * v).toPrecision(3) + ' ms' : number(v) + ' s'; }
    function percent(v) { return v == null || !isFinite(v) ? '\u2013' : plot.say(v, true); }

    var controlCount = 0;

    /* A slider with its label and its value; change is called while it moves. The value is outside the label: an output in
     * it would be what it labels. */
    function slider(label, o, say, change) {
        var id = 'control-' + ++controlCount;
        var input = el('input', {type: 'range', id: id, min: o.min, max: o.max, step: o.step});
        var shown = el('output', {for: id}), box = el('div', {class: 'slider'}, el('label', {for: id}, label), shown, input);
        input.value = o.value;
        function update() {
            shown.textContent = say(+input.value);
            input.setAttribute('aria-valuetext', shown.textContent);
        }
        input.addEventListener('input', function () {
            update();
            change();
        });
        update();
        return {box: box, get: function () { return +input.value; }, set: function (v) {
            input.value = v;
            update();
        }, limit: function (max) {
            input.max = max;
            update();
        }};
    }

    function select(label, options, change) {
        var input = el('select', {});
        options.forEach(function (o) { input.appendChild(el('option', {value: o[0]}, o[1])); });
        input.addEventListener('change', change);
        return {box: el('label', {class: 'slider'}, el('span', {}, label), input), input: input,
            get: function () { return input.value; }};
    }

    function button(label, click) {
        var b = el('button', {type: 'button'}, label);
        b.addEventListener('click', click);
        return b;
    }

    function controls() {
        var form = el('form', {class: 'controls'});
        form.addEventListener('submit', function (ev) { ev.preventDefault(); });
        for (var i = 0; i < arguments.length; i++) form.appendChild(arguments[i]);
        return form;
    }

    /* A table: heads, then rows of texts or elements. */
    function table(heads, rows) {
        var body = el('tbody', {}), top = el('tr', {});
        heads.forEach(function (h) { top.appendChild(el('th', {scope: 'col'}, h)); });
        rows.forEach(function (row) {
            var tr = el('tr', {});
            row.forEach(function (cell) { tr.appendChild(el('td', {}, cell)); });
            body.appendChild(tr);
        });
        return el('div', {class: 'scroll'}, el('table', {class: 'all'}, el('thead', {}, top), body));
    }

    function draw(svg, tag, o, text) {
        var e = document.createElementNS(plot.SVG, tag);
        for (var k in o) e.setAttribute(k, o[k]);
        if (text !== undefined) e.textContent = text;
        svg.appendChild(e);
        return e;
    }

    function drawing(width, height, label) {
        var svg = document.createElementNS(plot.SVG, 'svg');
        svg.setAttribute('viewBox', '0 0 ' + width + ' ' + height);
        svg.setAttribute('role', 'img');
        svg.setAttribute('aria-label', label);
        return svg;
    }

    /* Ticks and lines of both axes of a drawing with the plot area b: left, right, top, bottom. */
    function axes(svg, b, x, y, o) {
        var X = plot.scale(x[0], x[1], b[0], b[1], false), Y = plot.scale(y[0], y[1], b[3], b[2], false);
        plot.ticks(y[0], y[1], 4, false).forEach(function (v) {
            draw(svg, 'path', {class: 'grid', d: 'M' + b[0] + ' ' + Y(v).toFixed(1) + 'H' + b[1]});
            draw(svg, 'text', {x: b[0] - 5, y: Y(v) + 3.2, 'text-anchor': 'end'}, plot.say(v));
        });
        (o.ticks || plot.ticks(x[0], x[1], 6, false)).forEach(function (v) {
            draw(svg, 'path', {class: 'grid base', d: 'M' + X(v).toFixed(1) + ' ' + b[3] + 'v3'});
            draw(svg, 'text', {x: X(v), y: b[3] + 14, 'text-anchor': 'middle'}, (o.say || plot.say)(v));
        });
        if (o.x) draw(svg, 'text', {class: 'axis', x: b[1], y: b[3] + 27, 'text-anchor': 'end'}, o.x);
        if (o.y) draw(svg, 'text', {class: 'axis', x: b[0] - 5, y: b[2] - 8}, o.y);
        return {X: X, Y: Y};
    }

    /* Writes the names of curves at x, each at the height of its curve's end, {text, curve, y}, or so far from there that they do not
     * overlap, and none is below `bottom`. */
    function names(svg, x, list, bottom) {
        var apart = 12, all = list.slice().sort(function (s, t) { return s.y - t.y; }), i;
        all.forEach(function (n, k) { n.at = k ? Math.max(n.y, all[k - 1].at + apart) : n.y; });
        for (i = all.length - 1; i >= 0; i--) all[i].at = Math.min(all[i].at, bottom - apart * (all.length - 1 - i));
        all.forEach(function (n) { draw(svg, 'text', {class: 'name a' + n.curve, x: x, y: n.at + 3}, n.text); });
    }

    /* The width of a drawing: a narrow window gets a narrower one, so that its words stay legible. */
    function width(most) { return Math.min(most, window.innerWidth < 640 ? 380 : most); }

    function indices(list) {
        var all = [];
        for (var i = 0; i < list.length; i++) all.push(i);
        return all;
    }

    function unique(list) {
        return list.filter(function (v, i) { return list.indexOf(v) === i; }).sort(function (a, b) { return a - b; });
    }

    /* A slider over the steps of a list of objects. */
    function stepSlider(list, change) {
        var steps = unique(list.map(function (g) { return g.step; }));
        var s = slider('step', {min: 0, max: steps.length - 1, step: 1, value: steps.length - 1},
            function (i) { return 'step ' + steps[i]; }, change);
        s.steps = steps;
        s.step = function () { return steps[s.get()]; };
        return s;
    }

    function short(text, most) {
        var shown = R.visible(text).replace(/\s+/g, ' ');
        return shown.length > most ? shown.slice(0, most) + '\u2026' : shown;
    }

    /* ---- the group ---- */

    var NAMES = {advantage: 'advantage', logp: 'log-probability', sampler_logp: "sampler's log-probability",
        old_logp: 'log-probability before the update', ref_logp: "reference's log-probability", entropy: 'entropy',
        kl: 'log-probability minus that of the reference', exact: 'KL to the reference', rank: 'rank'};

    function legend() {
        return el('div', {class: 'legend'}, el('span', {class: 'above'}, 'positive'), ' ', el('span', {class: 'below'}, 'negative'));
    }

    /* A bar from the middle for a value in [-most, most]; a negative one is hollow. */
    function bar(v, most) {
        var svg = drawing(60, 12, number(v)), x = 30 + 28 * Math.max(-1, Math.min(1, most ? v / most : 0));
        draw(svg, 'path', {class: 'grid base', d: 'M30 0V12'});
        draw(svg, 'rect', {class: v < 0 ? 'minus' : 'plus', x: Math.min(30, x), y: 2, width: Math.abs(x - 30), height: 8});
        svg.setAttribute('class', 'value');
        return el('span', {class: 'bar-cell'}, number(v), svg);
    }

    /* A completion with its tokens in colours, by a value of each or, with the step's clip, by the advantage that it leaves. The
     * arrow keys move along the tokens. */
    function tokensOf(sample, by, said, clip) {
        var pre = el('pre', {class: 'tokens', tabindex: 0, 'aria-label': 'tokens; the arrow keys move along them'});
        var list = by === 'kept' ? R.kept(sample, clip) : R.values(sample, by), drawn = R.isDrawn(sample.drawn, sample.tokens.length), spans = [], at = -1;
        var advantages = R.values(sample, 'advantage');
        var most = Math.max.apply(null, list.map(function (v) { return v == null ? 0 : Math.abs(v); }));
        function tell(i) {
            if (at >= 0) spans[at].classList.remove('at');
            at = Math.max(0, Math.min(spans.length - 1, i));
            spans[at].classList.add('at');
            var parts = ['token ' + (at + 1) + ' of ' + spans.length, JSON.stringify(R.visible(sample.tokens[at]))];
            if (!drawn[at]) parts.push('observed');
            Object.keys(NAMES).forEach(function (key) {
                var v = R.values(sample, key)[at];
                if (v != null) parts.push(NAMES[key] + ' ' + number(v));
            });
            var likeliest = (sample.top || [])[at];
            if (likeliest) parts.push('likeliest ' + likeliest.map(function (t) {
                return JSON.stringify(R.visible(t[0])) + ' ' + percent(t[1]);
            }).join(', '));
            said.textContent = parts.join(', ');
        }
        sample.tokens.forEach(function (text, i) {
            var v = list[i], span = el('span', {}, R.visible(text));
            if (!drawn[i]) span.className = 'observed';
            else if (by === 'kept' && v === 0 && advantages[i]) span.className = 'removed';
            else if (v != null && most > 0) {
                span.className = v < 0 ? 'below' : 'above';
                span.style.backgroundColor = 'rgba(' + (v < 0 ? '224,122,40,' : '58,134,205,') +
                    (0.55 * Math.abs(v) / most).toFixed(3) + ')';
            }
            span.addEventListener('pointerenter', function () { tell(i); });
            spans.push(span);
            pre.appendChild(span);
        });
        if (sample.more_tokens) pre.appendChild(el('span', {class: 'none'}, ' \u2026 and ' + sample.more_tokens + ' tokens more'));
        if (!spans.length) pre.appendChild(el('span', {class: 'none'}, 'empty'));
        pre.addEventListener('keydown', function (ev) {
            if (ev.key !== 'ArrowRight' && ev.key !== 'ArrowLeft') return;
            tell(at + (ev.key === 'ArrowRight' ? 1 : -1));
            ev.preventDefault();
        });
        pre.addEventListener('focus', function () { if (spans.length) tell(Math.max(at, 0)); });
        return pre;
    }

    /* The turns of a completion as bars: filled while the model drew tokens, hollow while it observed some, or waited for them.
     * The first bar is divided by tokens, the second by time. They are as wide as there is room, so their names are outside of
     * the drawings. Below, folded away, a table of the turns. */
    function timeline(sample) {
        var turns = R.turns(sample), all = 0, waited = 0, end = turns[turns.length - 1].ended, at = 0;
        /* 1: it has been shown something before its first turn */
        var opening = turns[0].drawn ? 0 : 1;
        turns.forEach(function (t) {
            all += t.drawn + t.observed;
            waited += t.waited || 0;
        });
        if (turns.length < 2 || !all) return null;
        var timed = end > 0, tokens = line(turns.map(function (t) {
            return t.drawn + ' tokens drawn, ' + t.observed + ' observed';
        })), time = line(turns.map(function (t) {
            return seconds(t.ended - t.began) + ' drawing' + (t.waited == null ? '' : ', ' + seconds(t.waited) + ' waiting');
        }));
        function line(label) {
            var svg = drawing(300, 10, label.join('; '));
            svg.setAttribute('preserveAspectRatio', 'none');
            return svg;
        }
        function part(svg, kind, from, to) {
            draw(svg, 'rect', {class: kind, x: 1 + 298 * from, y: 1, width: Math.max(1, 298 * (to - from) - 1), height: 8});
        }
        turns.forEach(function (t, i) {
            if (t.drawn) part(tokens, 'plus', at / all, (at + t.drawn) / all);
            if (t.observed) part(tokens, 'minus', (at + t.drawn) / all, (at + t.drawn + t.observed) / all);
            at += t.drawn + t.observed;
            if (!timed) return;
            if (t.drawn) part(time, 'plus', t.began / end, t.ended / end);
            if (t.waited != null) part(time, 'minus', t.ended / end, turns[i + 1].began / end);
        });
        var bars = el('div', {class: 'timeline'}, el('span', {}, 'tokens'), tokens);
        if (timed) add(bars, el('span', {}, 'time'), time);
        return el('div', {}, bars, el('details', {}, el('summary', {}, turns.length - opening + (turns.length - opening === 1 ? ' turn' : ' turns') +
            (timed ? ', ' + seconds(end) + ', of which ' + seconds(waited) + ' waiting for answers' : '')),
        table(['turn', 'tokens', 'text'].concat(timed ? ['ended, s', 'waited, s'] : [], ['tokens', 'answer']), turns.map(function (t, i) {
            return [i < opening ? 'before' : i + 1 - opening, t.drawn, el('span', {class: 'mono'}, short(t.text, 80))].concat(
                timed ? [number(t.ended), number(t.waited)] : [], [t.observed, el('span', {class: 'mono'}, short(t.answer, 80))]);
        }))));
    }

    /* Whether the rewards of the run say nothing of right and wrong, like the scores of a reward model. */
    function scored() {
        return data.groups.some(function (group) {
            return group.samples.some(function (s) { return s.right == null && s.reward != null && (s.reward < 0 || s.reward > 1); });
        });
    }

    /* The share of right completions of a group; NaN if it is not known. */
    function passRate(group) {
        var known = group.samples.filter(function (s) { return !s.off_policy && (s.right != null || s.reward != null); });
        if (scored()) return NaN;
        return R.mean(known.map(function (s) { return (s.right != null ? s.right : s.reward >= 0.5) ? 1 : 0; }));
    }

    function groupWidget(root) {
        var seed = 0, steps = stepSlider(data.groups, function () { fill(); }), G, K;
        var prompts = select('prompt', [], function () { pick(); });
        var color = select('tokens by', [['advantage', 'advantage'], ['kept', 'advantage after the clip'], ['logp', 'log-probability'],
            ['entropy', 'entropy'], ['kl', 'KL to the reference']], function () { show(); });
        var replace = el('input', {type: 'checkbox'}), out = el('div', {}), replacing = el('label', {}, replace, ' with replacement');
        var again = button('Resample', function () {
            seed++;
            show();
        });
        replace.addEventListener('change', function () { show(); });
        G = slider('completions drawn', {min: 2, max: 2, step: 1, value: 2}, String, function () { show(); });
        K = slider('k of pass@k', {min: 1, max: 8, step: 1, value: 2}, String, function () { show(); });

        function here() { return data.groups.filter(function (g) { return g.step === steps.step(); }); }

        function fill() {
            var before = prompts.get();
            empty(prompts.input);
            here().forEach(function (g, i) {
                prompts.input.appendChild(el('option', {value: i}, (g.kind === 'trained' ? 'trained on: ' : '') +
                    short(g.prompt, 40)));
            });
            if (before && before < here().length) prompts.input.value = before;
            else prompts.input.value = firstGroup();
            pick();
        }

        /* The first prompt with several completions, which can be compared. */
        function firstGroup() {
            var all = here();
            for (var i = 0; i < all.length; i++) if (all[i].samples.length > 1) return i;
            return 0;
        }

        function pick() {
            var n = here()[+prompts.get()].samples.length;
            G.limit(n);
            G.set(n);
            K.limit(Math.max(1, Math.min(n, 16)));
            [G.box, replacing, again].forEach(function (e) { e.hidden = n < 2; });
            seed = 0;
            show();
        }

        function show() {
            var group = here()[+prompts.get()], n = group.samples.length, g = G.get();
            var chosen = seed ? R.draw(n, g, replace.checked, seed) : R.draw(n, n, false, 0).sort(function (a, b) {
                return a - b;
            }).slice(0, g);
            var samples = chosen.map(function (i) { return group.samples[i]; });
            var rewards = samples.map(function (s) { return s.reward; }), p = passRate(group);
            var names = Object.keys(samples[0].rewards || {}), kinds = ['grpo', 'dr_grpo', 'rloo', 'maxrl'];
            var o = {k: K.get(), weights: names.map(function () { return 1; }), parts: samples.map(function (s) {
                var parts = s.rewards || {};
                return names.map(function (name) { return parts[name]; });
            })};
            if (isFinite(p)) kinds.push('passk');
            if (names.length > 1) kinds.push('gdpo');
            if (n < 2) kinds = [];
            K.box.hidden = kinds.indexOf('passk') < 0;
            var all = kinds.map(function (kind) { return R.advantages(kind, rewards, o); });
            var most = all.map(function (list) { return Math.max.apply(null, list.map(Math.abs)); });
            empty(out);
            var summary = el('p', {class: 'summary', role: 'status'}, 'mean ', el('b', {}, number(R.mean(rewards))));
            if (n > 1) add(summary, ', deviation ', el('b', {}, number(R.deviation(rewards))));
            if (n > 1 && isFinite(p))
                add(summary, '; right ', el('b', {}, percent(p)), ' of the ' + n + ' stored; of groups of ' + g +
                    ' with this rate ', el('b', {}, percent(R.flat(p, g))), ' have equal rewards and no gradient');
            out.appendChild(summary);
            if (n < 2) out.appendChild(el('p', {class: 'note'}, 'The run draws one completion per prompt: there is no group to compare it with.'));
            out.appendChild(table(['completion', 'reward', 'as trained'].concat(kinds.map(function (kind) {
                return kind === 'passk' ? 'pass@' + o.k : kind;
            })), samples.map(function (s, i) {
                var trained = typeof s.advantage === 'number' ? s.advantage : s.advantage ? R.mean(s.advantage) : null;
                return [chosen[i] + ': ' + short(s.text, 28), number(s.reward), number(trained)].concat(
                    all.map(function (list, k) { return bar(list[i], most[k]); }));
            })));
            if (names.length > 1)
                out.appendChild(el('p', {class: 'note'}, 'gdpo normalises each of the rewards ' + names.map(R.visible).join(', ') +
                    ' within the group, with equal weights.'));
            add(out, rates());
            var said = el('output', {class: 'said'}, 'Point at a token, or move along the tokens by the arrow keys.');
            out.appendChild(said);
            var boxes = el('div', {class: 'pair'}), seen = {};
            var clip = group.kind === 'trained' ? data.clips.filter(function (c) { return c.step === group.step; })[0] : null;
            chosen.forEach(function (i) {
                var s = group.samples[i];
                if (seen[i]) return;
                seen[i] = true;
                var verdict = s.right == null ? '' : s.right ? '\u2713 right, ' : '\u2717 wrong, ';
                var more = [typeof s.role === 'string' ? R.visible(s.role) : null, s.stop && s.stop !== 'completed' ? R.visible(s.stop) : null,
                    s.turns > 1 ? s.turns + ' turns' : null, s.calls ? s.calls + (s.calls === 1 ? ' call' : ' calls') : null,
                    s.failed_calls ? s.failed_calls + ' failed' : null, s.gold != null ? 'gold ' + number(s.gold) : null];
                boxes.appendChild(el('div', {class: 'take ' + (s.right == null ? '' : s.right ? 'ok' : 'bad')},
                    el('div', {class: 'got'}, i + ': ' + (s.off_policy ? 'demonstration, ' : '') + verdict + 'reward ' + number(s.reward) +
                        more.filter(Boolean).map(function (t) { return ', ' + t; }).join('')),
                    timeline(s), tokensOf(s, color.get(), said, clip)));
            });
            out.appendChild(add(legend(), ' ', el('span', {class: 'observed'}, 'observed, not drawn by the model')));
            if (color.get() === 'kept')
                out.appendChild(el('p', {class: 'note'}, clip ? 'Struck out: the clip of the step removes the gradient.' :
                    'Nothing is clipped here: every rho is 1, or the completions were not trained on.'));
            if (R.values(group.samples[0], color.get() === 'kept' ? 'advantage' : color.get()).every(function (v) { return v == null; }))
                out.appendChild(el('p', {class: 'note'}, 'These completions have no such values' +
                    (color.get() === 'kl' ? ': the run has no reference.' : ': they were not trained on.')));
            out.appendChild(boxes);
            if (group.more_samples) out.appendChild(el('p', {class: 'note'}, group.more_samples + ' more completions are not in the page.'));
        }

        /* How many of the step's prompts have which share of right completions. */
        function rates() {
            var list = here().map(passRate).filter(isFinite), bins = [0, 0, 0, 0, 0], svg, b = [20, 240, 12, 60], top;
            if (!list.length) return null;
            list.forEach(function (p) { bins[Math.min(4, Math.floor(5 * p))]++; });
            top = Math.max.apply(null, bins.concat([1]));
            svg = drawing(260, 80, 'prompts by their share of right completions: ' + bins.join(', '));
            bins.forEach(function (n, i) {
                var x = b[0] + 44 * i, h = (b[3] - b[2]) * n / top;
                draw(svg, 'rect', {class: 'plus', x: x + 2, y: b[3] - h, width: 40, height: h});
                draw(svg, 'text', {x: x, y: b[3] + 12, 'text-anchor': 'middle'}, 20 * i + '%');
                if (n) draw(svg, 'text', {x: x + 22, y: b[3] - h - 2, 'text-anchor': 'middle'}, n);
            });
            draw(svg, 'text', {x: b[0] + 220, y: b[3] + 12, 'text-anchor': 'middle'}, '100%');
            svg.setAttribute('class', 'small');
            return el('div', {}, el('p', {class: 'note'}, 'Groups of this step by their share of right completions:'), svg);
        }

        root.appendChild(controls(steps.box, prompts.box, G.box, K.box, color.box, replacing, again));
        root.appendChild(out);
        fill();
    }

    /* ---- the clip ---- */

    function clipWidget(root) {
        if (!data.clips.length) return false;
        var steps = stepSlider(data.clips, function () { own(); });
        function two(v) { return String(+v.toPrecision(3)); }
        var low = slider('epsilon', {min: 0, max: 0.99, step: 0.005, value: 0.2}, two, show);
        var high = slider('epsilon high', {min: 0, max: 3, step: 0.005, value: 0.2}, two, show);
        var A = slider('advantage', {min: -2, max: 2, step: 0.1, value: 1}, two, show);
        var delta = slider('dual clip', {min: 0, max: 10, step: 0.1, value: 0}, function (v) { return v ? two(v) : 'none'; }, show);
        var mu = slider('probability under the sampler', {min: 0.01, max: 1, step: 0.01, value: 0.5}, two, show);
        var kind = select('loss', [['ppo', 'ppo, grpo, dapo'], ['cispo', 'cispo'], ['sapo', 'sapo'], ['gspo', 'gspo'],
            ['dppo', 'dppo'], ['none', 'without a clip']], show), out = el('div', {});

        function clip() { return data.clips.filter(function (c) { return c.step === steps.step(); })[0]; }

        function own() {
            var c = clip(), tiny = Math.max(c.epsilon, c.epsilon_high) < 0.05;
            [low, high].forEach(function (s) { s.box.querySelector('input').step = tiny ? 1e-5 : 0.005; });
            if (tiny) {
                low.limit(0.05);
                high.limit(0.05);
            }
            kind.input.value = ['cispo', 'sapo', 'gspo', 'dppo'].indexOf(c.loss) >= 0 ? c.loss : c.loss === 'kl_cov' ? 'none' : 'ppo';
            if (kind.get() === 'cispo') high.limit(10);
            low.set(c.loss === 'gmpo' ? 1 - Math.exp(-c.epsilon) : c.epsilon);
            high.set(c.loss === 'gmpo' ? Math.exp(c.epsilon_high) - 1 : c.epsilon_high);
            delta.set(c.delta || 0);
            show();
        }

        function show() {
            var c = clip(), s = {low: low.get(), high: high.get(), delta: delta.get(), positive: 1, negative: 1.05, mu: mu.get()};
            var from = s.low < 1 ? Math.log(1 - s.low) : -Infinity, to = Math.log(1 + s.high), share;
            if (kind.get() === 'cispo') {
                from = -Infinity;
                to = Math.log(s.high);
            }
            var none = c.zero.reduce(function (sum, n) { return sum + n; }, 0);
            var lost = kind.get() === 'cispo' ? 'a clipped weight' : 'no gradient';
            share = ['sapo', 'dppo', 'none'].indexOf(kind.get()) >= 0 ? 0 : R.clipShare(c, from, to);
            var e = c.edges, x = [e[0], e[e.length - 1]], W = width(680), b = [52, W - 80, 24, 190], i, curve = [], slope = [], lists;
            for (i = 0; i <= 160; i++) {
                var d = x[0] + (x[1] - x[0]) * i / 160, t = R.surrogate(kind.get(), Math.exp(d), A.get(), s);
                curve.push([d, t.value]);
                slope.push([d, t.slope]);
            }
            lists = [curve, slope];
            var y = plot.extent(lists, 1), svg = drawing(W, 350, 'surrogate and its slope as functions of rho; ' +
                percent(share) + ' of the step with ' + lost);
            var few = x[1] < 0.1 ? [x[0], x[0] / 2, 0, x[1] / 2, x[1]] :
                (W < 500 ? [0.1, 0.25, 0.5, 1, 2, 4, 8] : [0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.6, 2, 3, 5, 8]).map(Math.log).filter(function (v) { return v >= x[0] && v <= x[1]; });
            var at = axes(svg, b, x, y, {y: 'surrogate', ticks: few, say: function (v) { return plot.say(Math.exp(v)); }});
            draw(svg, 'path', {class: 'line a0', d: plot.path(curve, at.X, at.Y)});
            draw(draw(svg, 'g', {class: 'd1'}), 'path', {class: 'line a1', d: plot.path(slope, at.X, at.Y)});
            names(svg, b[1] + 6, [{text: 'surrogate', curve: 0, y: at.Y(curve[160][1])},
                {text: kind.get() === 'cispo' ? 'weight' : 'slope', curve: 1, y: at.Y(slope[160][1])}], b[3]);
            histogram(svg, c, at.X, [b[0], b[1], 250, 328], from, to, b[3]);
            mu.box.hidden = kind.get() !== 'dppo';
            delta.box.hidden = kind.get() !== 'ppo' && kind.get() !== 'gspo';
            empty(out);
            out.appendChild(el('div', {class: 'scroll'}, svg));
            out.appendChild(el('p', {class: 'summary', role: 'status'}, el('b', {}, percent(share)), ' of this step\u2019s ' +
                (c.unit === 'completion' ? 'completions' : 'tokens') + ' have ' + lost + ' at these settings; the run logged ',
                el('b', {}, percent(c.share)), '.',
                kind.get() === 'sapo' ? ' sapo has no clip: the slope falls off on both sides.' : '',
                kind.get() === 'dppo' ? ' dppo drops a gradient by the difference of probabilities, which the histogram has not.' : ''));
            out.appendChild(el('p', {class: 'note'}, 'Histogram: positive advantages above the line, negative ones below it; pale, with a dashed rim: ' + lost + '.' +
                (none ? ' Not drawn: ' + none + ' ' + c.unit + (none === 1 ? '' : 's') + ' with an advantage of 0, which have no gradient.' : '')));
            var tokens = c.tokens || [];
            if (tokens.length)
                out.appendChild(table(['token', 'rho', 'advantage', 'gradient'], tokens.slice().sort(function (s, t) {
                    return Math.abs(t.log_ratio) - Math.abs(s.log_ratio);
                }).slice(0, 12).map(function (t) {
                    var gone = (t.advantage > 0 && t.log_ratio > to) || (t.advantage < 0 && t.log_ratio < from);
                    return [el('span', {class: 'mono'}, short(t.before, 24), el('b', {}, R.visible(t.text))),
                        number(Math.exp(t.log_ratio)), number(t.advantage), t.advantage === 0 ? '\u2013' : gone ? '\u2717 ' + (kind.get() === 'cispo' ? 'clipped' : 'removed') : '\u2713 kept'];
                })));
        }

        /* Counts of negative advantages below the line, of positive ones above it; pale where the clip removes. The clip
         * is marked here and in the plot above, whose lower end is given, but not across the words between them. */
        function histogram(svg, c, X, b, from, to, above) {
            var rows = c.counts.length, e = c.edges, sums = [[], []], top = 1, middle = (b[2] + b[3]) / 2;
            for (var bin = 0; bin <= e.length; bin++) {
                var minus = 0, plus = 0;
                for (var r = 0; r < rows; r++) if (r < rows / 2) minus += c.counts[r][bin]; else plus += c.counts[r][bin];
                sums[0].push(minus);
                sums[1].push(plus);
                top = Math.max(top, minus, plus);
            }
            sums.forEach(function (list, sign) {
                list.forEach(function (n, k) {
                    var left = k ? X(e[k - 1]) : b[0] - 12, right = k < e.length ? X(e[k]) : b[1] + 12;
                    var h = n ? Math.max(1, (b[3] - b[2]) / 2 * Math.log(1 + n) / Math.log(1 + top)) : 0;
                    var lost = sign ? k && e[k - 1] > to - 2e-3 : k < e.length && e[k] < from + 2e-3;
                    if (h) draw(svg, 'rect', {class: (sign ? 'plus' : 'minus') + (lost ? ' lost' : ''), x: left + 0.5,
                        y: sign ? middle - h : middle, width: Math.max(1, right - left - 1), height: h});
                });
            });
            draw(svg, 'path', {class: 'grid base', d: 'M' + b[0] + ' ' + middle + 'H' + b[1]});
            [from, to].forEach(function (v) {
                if (isFinite(v) && v >= e[0] && v <= e[e.length - 1])
                    draw(svg, 'path', {class: 'hair', d: 'M' + X(v).toFixed(1) + ' 24V' + above + 'M' + X(v).toFixed(1) + ' ' + (b[2] - 6) + 'V' + b[3]});
            });
            draw(svg, 'text', {class: 'axis', x: b[0] - 5, y: b[2] - 12}, 'number of ' + c.unit + 's, logarithmic');
            draw(svg, 'text', {class: 'axis', x: b[1], y: b[3] + 14, 'text-anchor': 'end'}, 'rho');
        }

        root.appendChild(controls(steps.box, kind.box, low.box, high.box, A.box, delta.box, mu.box,
            button('The run\u2019s own values', function () { own(); })));
        root.appendChild(out);
        own();
        return true;
    }

    /* ---- the film ---- */

    /* The mean of a list of the frames of a step. */
    function over(frames, key) {
        return R.mean(frames.reduce(function (all, f) { return all.concat(f[key]); }, []));
    }

    function filmPoints() {
        return unique(data.film.map(function (f) { return f.step; })).map(function (step) {
            var frames = data.film.filter(function (f) { return f.step === step; });
            var gold = over(frames, 'gold'), kl = over(frames, 'kl');
            return {step: step, frames: frames, reward: over(frames, 'reward'), gold: isFinite(gold) ? gold : null,
                kl: isFinite(kl) ? kl : null, length: over(frames, 'length'), entropy: over(frames, 'entropy')};
        });
    }

    function samplesOf(point) {
        return point.frames.reduce(function (all, f) {
            return all.concat(f.text.map(function (t, i) { return {text: t, reward: f.reward[i], gold: f.gold[i]}; }));
        }, []);
    }

    function filmWidget(root) {
        var points = filmPoints(), playing = null, since = R.hacked(points), out = el('div', {});
        var steps = stepSlider(data.film, show), play = button('Play', toggle);
        var ids = unique(data.film.map(function (f) { return f.prompt_id; }));
        var prompts = select('prompt', ids.map(function (id) {
            return [id, short(data.film.filter(function (f) { return f.prompt_id === id; })[0].prompt, 40)];
        }), show);

        function toggle() {
            if (playing) {
                clearInterval(playing);
                playing = null;
                play.textContent = 'Play';
                return;
            }
            if (steps.get() === steps.steps.length - 1) steps.set(0);
            play.textContent = 'Stop';
            playing = setInterval(function () {
                if (steps.get() >= steps.steps.length - 1) return toggle();
                steps.set(steps.get() + 1);
                show();
            }, 700);
            show();
        }

        function curves(at) {
            var W = width(680), svg = drawing(W, 190, 'reward' + (points[0].gold != null ? ' and gold reward' : '') + ' at each dump');
            var b = [52, W - 80, 24, 150], lists = ['reward', 'gold'].map(function (key) {
                return points.map(function (p, i) { return [i, p[key]]; }).filter(function (p) { return p[1] != null && isFinite(p[1]); });
            }).filter(function (list) { return list.length; });
            var y = plot.extent(lists, 1) || [0, 1];
            var a = axes(svg, b, [0, Math.max(1, points.length - 1)], y, {y: 'reward', x: 'step',
                ticks: indices(points).filter(function (i) { return i % Math.ceil(points.length / (W < 500 ? 6 : 12)) === 0; }),
                say: function (i) { return String(points[i].step); }});
            lists.forEach(function (list, k) {
                draw(draw(svg, 'g', {class: 'd' + k}), 'path', {class: 'line a' + k, d: plot.path(list, a.X, a.Y)});
            });
            names(svg, b[1] + 6, lists.map(function (list, k) {
                return {text: k ? 'gold' : lists.length > 1 ? 'proxy' : 'reward', curve: k, y: a.Y(list[list.length - 1][1])};
            }), b[3]);
            draw(svg, 'path', {class: 'hair', d: 'M' + a.X(at).toFixed(1) + ' ' + b[2] + 'V' + b[3]});
            return svg;
        }

        function show() {
            var at = steps.get(), point = points[at], id = +prompts.get();
            var frame = point.frames.filter(function (f) { return f.prompt_id === id; })[0];
            var all = samplesOf(point), gold = point.gold != null;
            empty(out);
            out.appendChild(el('div', {class: 'scroll'}, curves(at)));
            out.appendChild(table(['reward'].concat(gold ? 'gold' : [], point.kl == null ? [] : 'KL, nats', ['tokens', 'entropy', 'distinct-3']),
                [[number(point.reward)].concat(gold ? number(point.gold) : [], point.kl == null ? [] : number(point.kl),
                    [number(point.length), number(point.entropy), number(R.distinct(all.map(function (s) { return s.text; }), 3))])]));
            if (since >= 0)
                out.appendChild(el('p', {class: 'verdict'}, '\u2717 The proxy rose while the gold reward fell at three dumps one after the other: hacked since step ' + since + '.'));
            else if (gold) out.appendChild(el('p', {class: 'note'}, 'The gold reward did not fall at three dumps one after the other while the proxy rose.'));
            var boxes = el('div', {class: 'pair'});
            if (frame) frame.text.slice(0, 4).forEach(function (text, i) {
                boxes.appendChild(el('div', {class: 'take'}, el('div', {class: 'got'}, 'reward ' + number(frame.reward[i]) +
                    (frame.gold[i] == null ? '' : ', gold ' + number(frame.gold[i])) + ', ' + frame.length[i] + ' tokens'),
                    el('pre', {}, R.visible(text))));
            });
            out.appendChild(boxes);
            if (at) {
                out.appendChild(el('p', {class: 'note'}, 'What has become more frequent since step ' + points[0].step +
                    ', as a share of the completions shown:'));
                out.appendChild(table(['words', 'before', 'now', 'reward'].concat(gold ? 'gold' : []), R.risen(samplesOf(points[0]), all, 8).map(function (c) {
                    return [el('span', {class: 'mono'}, short(c.text, 60)), percent(c.before), percent(c.after), number(c.reward)].concat(
                        gold ? number(c.gold) : []);
                })));
            }
        }

        root.appendChild(controls(steps.box, prompts.box, play));
        root.appendChild(out);
        show();
    }

    /* ---- the penalty ---- */

    function tiltWidget(root) {
        var prompts = data.film.filter(function (f) { return f.step === 0; }).map(function (f) {
            var kept = indices(f.reward).filter(function (i) { return f.reward[i] != null; });
            var gold = kept.every(function (i) { return f.gold[i] != null; });
            return {reward: kept.map(function (i) { return f.reward[i]; }), gold: gold ? kept.map(function (i) { return f.gold[i]; }) : null};
        }).filter(function (p) { return p.reward.length > 1; });
        var golden = prompts.every(function (p) { return p.gold; }), out = el('div', {});
        var beta = slider('beta', {min: -2, max: 1.5, step: 0.02, value: 0}, function (v) { return String(+Math.pow(10, v).toPrecision(3)); }, show);
        var curve = [], v;
        for (v = 2; v >= -2.5; v -= 0.05) curve.push(R.tiltAll(prompts, Math.pow(10, v)));
        var course = filmPoints().filter(function (p) { return p.kl != null; });

        function show() {
            var now = R.tiltAll(prompts, Math.pow(10, beta.get()));
            var W = width(680), svg = drawing(W, 270, 'reward as a function of the KL'), b = [52, W - 70, 24, 220];
            var keys = golden ? ['reward', 'gold'] : ['reward'];
            var lists = keys.map(function (key) { return curve.map(function (t) { return [t.kl, t[key]]; }); });
            var taken = keys.map(function (key) {
                return course.map(function (p) { return [Math.max(0, p.kl), p[key]]; }).filter(function (p) { return p[1] != null; });
            });
            var most = Math.max.apply(null, lists[0].concat(taken[0]).map(function (p) { return p[0]; })) || 1;
            var x = [-most / 50, most];
            var a = axes(svg, b, x, plot.extent(lists.concat(taken), 1), {x: 'KL to the reference, nats per completion', y: 'reward'});
            keys.forEach(function (key, k) {
                var sure = curve.map(function (t) { return t.effective >= 5; });
                var solid = lists[k].filter(function (_point, i) { return sure[i]; });
                var dashed = lists[k].filter(function (_point, i) { return !sure[i] || (i + 1 < sure.length && !sure[i + 1]); });
                if (solid.length) draw(svg, 'path', {class: 'line a' + k, d: plot.path(solid, a.X, a.Y)});
                if (dashed.length) draw(draw(svg, 'g', {class: 'd1'}), 'path', {class: 'line a' + k, d: plot.path(dashed, a.X, a.Y)});
                draw(svg, 'circle', {class: 'a' + k, cx: a.X(now.kl), cy: a.Y(now[key]), r: 5});
                taken[k].forEach(function (p) {
                    draw(svg, 'path', {class: 'cross a' + k, d: 'M' + (a.X(p[0]) - 3).toFixed(1) + ' ' + (a.Y(p[1]) - 3).toFixed(1) +
                        'l6 6m0 -6l-6 6'});
                });
            });
            /* next to the ends of the curves, unless the run's crosses are there */
            var ends = a.X(curve[curve.length - 1].kl);
            names(svg, (ends < b[1] - 70 ? ends : b[1]) + 8, keys.map(function (key, k) {
                return {text: key, curve: k, y: a.Y(lists[k][lists[k].length - 1][1])};
            }), b[3]);
            empty(out);
            out.appendChild(el('div', {class: 'scroll'}, svg));
            out.appendChild(el('p', {class: 'summary', role: 'status'}, 'reward ', el('b', {}, number(now.reward)),
                golden ? ', gold ' : '', golden ? el('b', {}, number(now.gold)) : '', ', KL ', el('b', {}, number(now.kl)),
                ', effective samples ', el('b', {}, number(now.effective)),
                now.effective < 5 ? ': too few to say much' : ''));
            out.appendChild(el('p', {class: 'note'}, 'Line: the best policy for each beta, dashed below five effective samples; dot: at this beta. ' +
                (course.length ? 'Crosses: where the run went. ' : 'The run has no reference, so its own KL is not known. ') +
                'With ' + prompts[0].reward.length + ' samples per prompt, the KL is at most ' + number(Math.log(prompts[0].reward.length)) + '.'));
        }

        root.appendChild(controls(beta.box));
        root.appendChild(out);
        show();
    }

    /* ---- preference pairs ---- */

    function pairsWidget(root) {
        var d = JSON.parse(document.getElementById('pairs-data').textContent), out = el('div', {});
        var kinds = ['sigmoid', 'hinge', 'ipo_sum', 'exo_pair', 'nca_pair', 'robust', 'bco_pair', 'sppo_hard', 'apo_zero', 'apo_down',
            'discopop', 'dpop'];
        if (!d.pairs.length) return;
        var kind = select('loss', kinds.map(function (k) { return [k, k]; }), show);
        var own = d.loss.split(',').filter(function (k) { return kinds.indexOf(k) >= 0; })[0];
        var beta = slider('beta', {min: -3, max: 1, step: 0.02, value: Math.log(d.beta) / Math.LN10},
            function (v) { return String(+Math.pow(10, v).toPrecision(3)); }, show);
        if (own) kind.input.value = own;

        /* The label smoothing of a loss: the run's own, or, for those that have no meaning without, 0.1. */
        function smoothed(name) {
            return d.smoothing > 0 || (name !== 'exo_pair' && name !== 'robust') ? d.smoothing : 0.1;
        }

        function show() {
            var b = Math.pow(10, beta.get()), most = Math.max.apply(null, d.pairs.map(function (p) {
                return Math.max(Math.abs(p[0]), Math.abs(p[1]));
            })) * 1.15 || 1, n = 96, i, k, rows = [], low = Infinity, high = -Infinity, W = width(520);
            var svg = drawing(W, 380, 'pairs over the contours of the loss');
            svg.setAttribute('class', 'square');
            var area = [52, W - 20, 20, 330];
            var o = {beta: b, smoothing: smoothed(kind.get()), tau: d.tau, lambda: d.lambda};
            for (k = 0; k < n; k++) {
                rows.push([]);
                for (i = 0; i < n; i++) {
                    var l = R.pairLoss(kind.get(), most * (2 * (i + 0.5) / n - 1), most * (2 * (k + 0.5) / n - 1), o);
                    rows[k].push(l);
                    low = Math.min(low, l);
                    high = Math.max(high, l);
                }
            }
            var at = axes(svg, area, [-most, most], [-most, most], {x: W < 500 ? 'log-ratio of the chosen completion' : 'log-ratio of the chosen completion to the reference', y: 'of the rejected one'});
            var w = (area[1] - area[0]) / n, h = (area[3] - area[2]) / n;
            rows.forEach(function (row, r) {
                /* nine levels, whose borders are the contours; a rectangle for each run of cells of one level */
                var levels = row.map(function (v) { return high > low ? Math.round(8 * (v - low) / (high - low)) : 0; }), from = 0;
                levels.forEach(function (level, c) {
                    if (c + 1 < n && levels[c + 1] === level) return;
                    if (level) draw(svg, 'rect', {class: 'level', x: (area[0] + from * w).toFixed(2), y: (area[3] - (r + 1) * h).toFixed(2),
                        width: ((c + 1 - from) * w).toFixed(2), height: h.toFixed(2), 'fill-opacity': level / 16});
                    from = c + 1;
                });
            });
            draw(draw(svg, 'g', {class: 'd1'}), 'path', {class: 'line a6', d: 'M' + at.X(-most) + ' ' + at.Y(-most) + 'L' + at.X(most) + ' ' + at.Y(most)});
            d.pairs.forEach(function (p) {
                draw(svg, 'circle', {class: p[2] ? 'after' : 'before', cx: at.X(p[0]), cy: at.Y(p[1]), r: 4});
            });
            function over(when) {
                return R.mean(d.pairs.filter(function (p) { return p[2] === when; }).map(function (p) { return R.pairLoss(kind.get(), p[0], p[1], o); }));
            }
            empty(out);
            out.appendChild(el('div', {class: 'scroll'}, svg));
            out.appendChild(el('p', {class: 'summary', role: 'status'}, 'mean loss of these pairs before ', el('b', {}, number(over(0))),
                ', after ', el('b', {}, number(over(1)))));
            out.appendChild(el('p', {class: 'note'}, 'Hollow: before training, filled: after it. Darker: a higher loss, from ' + number(low) + ' to ' +
                number(high) + '. Below the dashed line the chosen completion gained more than the rejected one.' +
                (o.smoothing > 0 ? ' Label smoothing: ' + number(o.smoothing) + '.' : '') +
                (own ? '' : ' The run\u2019s own loss, ' + R.visible(d.loss) + ', depends on more than these two numbers.')));
        }

        root.appendChild(controls(kind.box, beta.box));
        root.appendChild(out);
        show();
    }

    /* ---- texts that two models read ---- */

    function tokensWidget(root) {
        var texts = JSON.parse(document.getElementById('tokens-data').textContent), out = el('div', {});
        var color = select('tokens by', [['exact', 'KL to the reference'], ['kl', 'log-probability minus that of the reference'],
            ['logp', 'log-probability'], ['ref_logp', 'reference\u2019s log-probability'], ['entropy', 'entropy']], show);
        var order = select('texts', [['index', 'in their order'], ['exact', 'largest mean KL first']], show);

        function show() {
            var said = el('output', {class: 'said'}, 'Point at a token, or move along the tokens by the arrow keys.'), all = texts.slice();
            if (order.get() === 'exact') all.sort(function (s, t) { return R.mean(t.exact) - R.mean(s.exact); });
            empty(out);
            add(out, said, legend());
            all.forEach(function (t) {
                out.appendChild(el('article', {class: 'prompt'}, el('div', {class: 'ask'}, el('span', {class: 'n'}, t.index),
                    el('pre', {}, R.visible(t.before || ''))), el('div', {class: 'take'}, el('div', {class: 'got'}, 'mean KL ' +
                    number(R.mean(t.exact)) + ', ' + t.tokens.length + (t.tokens.length === 1 ? ' token' : ' tokens')),
                tokensOf(t, color.get(), said))));
            });
        }

        if (!texts.length) return false;
        root.appendChild(controls(color.box, order.box));
        root.appendChild(out);
        show();
        return true;
    }

    var widgets = {tokens: tokensWidget, pairs: pairsWidget, group: groupWidget, clip: clipWidget, film: filmWidget, tilt: tiltWidget};
    var waiting = [].slice.call(document.querySelectorAll('[data-widget]'));

    /* Draws a widget in the place of its table. One that fails keeps the table. */
    function put(root) {
        var made = el('div', {}), holder = document.getElementById('rollouts-data');
        try {
            if (!data && holder) data = JSON.parse(holder.textContent);
            if (widgets[root.getAttribute('data-widget')](made) === false) return;
            empty(root).appendChild(made);
        } catch (why) {
            root.appendChild(el('p', {class: 'note'}, 'This part of the script failed: ' + R.visible(String(why)) + '. The table is complete.'));
        }
    }

    function putAll() {
        while (waiting.length) put(waiting.shift());
    }

    function putNext() {
        if (waiting.length) put(waiting.shift());
        if (waiting.length) setTimeout(putNext, 0);
    }

    /* The page opens with the tables. The widgets are drawn after that, one at a time, all at once before the page is printed,
     * and at once if the address names a place in the page, which would move. */
    window.addEventListener('beforeprint', putAll);
    if (location.hash) putAll();
    else window.addEventListener('load', function () { setTimeout(putNext, 0); });
})();
