@echo off
rem A grid of runs from a YAML (configs\experiments), several at a time, then the report of all: scripts\compare.py.
rem     scripts\compare.bat EXPERIMENT [--jobs N] [--gpus 0,1] [--only REGEX] [--dry-run] [FLAGS of LaFTer.py] [KEY VALUE ...]
rem     scripts\compare.bat demo --jobs 2
rem     scripts\compare.bat ablation --jobs 2 --dry-run
rem An experiment is a file or the name of one in configs\experiments. Paths, also the runs' folder, are relative to
rem where you stand. The same command again goes on with what is unfinished.
setlocal
call "%~dp0setup_env.bat"
if %ERRORLEVEL% neq 0 exit /b 1
call "%PY%" "%PROJECT%\scripts\compare.py" %*
exit /b %ERRORLEVEL%
