/* The functions that gcc calls even in freestanding code, for it takes loops and copies of structures for them. */

typedef unsigned long size_t;

void *memcpy(void *to, const void *from, size_t size) {
  for (size_t i = 0; i < size; i++) ((char *)to)[i] = ((const char *)from)[i];
  return to;
}

void *memmove(void *to, const void *from, size_t size) {
  if (to <= from) return memcpy(to, from, size);
  while (size-- > 0) ((char *)to)[size] = ((const char *)from)[size];
  return to;
}

void *memset(void *to, int value, size_t size) {
  for (size_t i = 0; i < size; i++) ((char *)to)[i] = value;
  return to;
}

int memcmp(const void *left, const void *right, size_t size) {
  for (size_t i = 0; i < size; i++) {
    int difference = ((const unsigned char *)left)[i] - ((const unsigned char *)right)[i];
    if (difference != 0) return difference;
  }
  return 0;
}
