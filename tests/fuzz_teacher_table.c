/* fuzz_teacher_table.c - libFuzzer target: arbitrary bytes as a file of a teacher's log-probabilities, unchanged and with a
 * corrected checksum. Every row of a file that is accepted can be read, and is a distribution.
 */
#include "../llmc/base/error.h"            /* Error, xmalloc */
#include "../llmc/base/io.h"               /* Reader, reader_close, reader_memory */
#include "../llmc/records/teacher_table.h" /* TeacherTable, TeacherRow, teacher_table_close, teacher_table_find, ... */
#include "fuzz.h"                          /* require, fuzz_sealed, require_error */

static void read_rows(const TeacherTable *t, int k) {
    Error e;
    TeacherRow row;
    float *logp = (float *)xmalloc((size_t)t->count * sizeof *logp);
    int32_t *token = (int32_t *)xmalloc((size_t)t->count * sizeof *token);
    for (uint64_t i = 0; i < t->table[k].targets; i++) {
        require(teacher_table_row(t, k, i, &row, logp, token, &e));
        require(row.logp <= 1e-3f && row.rest <= 1e-3f && row.entropy > -1);
        for (int32_t n = 0; n < t->count; n++) require(token[n] >= 0 && token[n] < t->vocab && logp[n] <= 1e-3f);
    }
    free(logp), free(token);
}

static void read_file(const uint8_t *data, size_t n) {
    Reader in;
    TeacherTable t;
    Error e = {""};
    if (!reader_memory(&in, data, n, &e)) return;
    const bool ok = teacher_table_read(&t, &in, &e);
    reader_close(&in);
    if (!ok) {
        require_error(&e);
        return;
    }
    for (int k = 0; k < t.tables; k++) {
        require(teacher_table_find(&t, t.table[k].data, t.table[k].targets) >= 0);
        read_rows(&t, k);
    }
    teacher_table_close(&t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    read_file(data, n);
    if (n <= 128) return 0;
    uint8_t *sealed = fuzz_sealed(data, n);
    read_file(sealed, n);
    free(sealed);
    return 0;
}
